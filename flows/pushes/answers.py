"""What becomes of a delivery: it is proven, read, and its runs are asked for; or why not."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import parse_qs

import httpx
from prefect.exceptions import PrefectException
from starlette.exceptions import HTTPException

from flows.pushes.handover import Busy
from flows.pushes.runs import Run, Runs
from flows.pushes.senders import BLOCK, SECRETS, SHORTEST, Secrets, Sender
from flows.pushes.signatures import Delivery
from flows.windows import told
from tasks.bluegreen.units import Frozen

LOG = logging.getLogger("nonstop.webhook")


class Answer(Frozen):
    """What became of a delivery."""

    outcome: Literal["accepted", "ignored"]
    message: str
    runs: tuple[Run, ...] = ()


class Problem(Frozen):
    """Why a request was refused, and what to do."""

    message: str


PROBLEMS: dict[int, str] = {
    400: "It is no JSON object, or ended early.",
    401: "It is not signed with the sender's secret.",
    404: "No such sender, or it is off because it has no secret.",
    408: "It did not arrive in time.",
    413: "It is too large.",
    429: "Too many requests.",
    503: "The Prefect server is away, or busy: deliver it again.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words} for status, words in PROBLEMS.items()
}


async def answer(sender: Sender, delivery: Delivery, secrets: Secrets, runs: Runs) -> Answer:
    """The pushes of a delivery are kept and their runs are asked for, or it asks for none.

    Raises:
        HTTPException: it is refused, in words that repeat nothing of it.
    """
    with _away():
        known = await secrets.of(sender.name)
    if not known:
        raise HTTPException(404, _off(sender))
    if not any([sender.proven(secret, delivery) for secret in known]):  # noqa: C419  # in equal time
        raise HTTPException(401, f"It is not signed with a secret of {sender.title}.")
    if delivery.header("x-github-event") == "ping":
        return Answer(outcome="ignored", message="The secret is right. Pushes can come.")
    said = sender.read(delivery, _payload(delivery))
    if not said.pushes:
        return Answer(outcome="ignored", message=said.why)
    with _away():
        wanted = await runs.wanted(said.pushes)
    if not wanted:
        return Answer(
            outcome="ignored", message="No app has that image with a `deploy_on_push` for its tag."
        )
    asked, sentences = [], []
    for subscriber, push, image in wanted:
        with _away():
            run = await runs.request(subscriber, push, image, sender.name, delivery.received)
        opens = None if run.ended else subscriber.opens()
        asked.append(run.model_copy(update={"not_before": opens}))
        sentences.append(_sentence(run))
        if opens:
            when = told(opens, subscriber.window)
            sentences.append(f"{run.app} may not be deployed before {when}: it waits until then.")
    return Answer(outcome="accepted", message=" ".join(sentences), runs=tuple(asked))


def _sentence(run: Run) -> str:
    if run.run is None:
        return f"The run of {run.app} follows: the push is kept until the Prefect server has it."
    if not run.state:
        newer = "A newer push came with it: its" if run.newer else "The"
        return f"{newer} run of {run.app} is queued."
    again = " and is not repeated: run it again in the UI, or push again" if run.ended else ""
    return f"It came before; the run of {run.app} is {run.state}{again}."


@contextmanager
def _away() -> Iterator[None]:
    """What the Prefect server, or our disk, does not do within is to be delivered again."""
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError, ValueError) as error:
        LOG.warning("the Prefect server: %s: %s", type(error).__name__, error)
        raise HTTPException(503, PROBLEMS[503], {"Retry-After": "30"}) from error
    except sqlite3.Error as error:
        LOG.error("the push cannot be kept: %s", error)  # noqa: TRY400  # the sentence says it all
        full = "The push cannot be kept, the receiver's log says why: deliver it again."
        raise HTTPException(503, full, {"Retry-After": "30"}) from error
    except Busy:
        busy = "More is pushed than the Prefect server can take: deliver it again."
        raise HTTPException(503, busy, {"Retry-After": "5"}) from None


def _payload(delivery: Delivery) -> dict[str, Any]:
    body = delivery.body
    try:
        if delivery.header("content-type").startswith("application/x-www-form-urlencoded"):
            body = parse_qs(body).get(b"payload", [b""])[0]  # as GitHub sends it if told so
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise HTTPException(400, "The body is no JSON object.")
    return payload


def _off(sender: Sender) -> str:
    return (
        f"{sender.title} is off: store its secret, of at least {SHORTEST} characters, in a Secret "
        f"block named {BLOCK}{sender.name}, or in the file {sender.name} of {SECRETS}."
    )
