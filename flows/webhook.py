"""The receiver of webhooks: a signed push of an image becomes a run of the apps that wait for it.

A delivery is answered when its runs are on the Prefect server, and with 503 when they can't be, so
that nothing that was answered well is ever lost. Senders that repeat do so after a 503; GitHub and
Docker Hub don't, there a person delivers again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from flows.batches import Busy
from flows.guard import TOLD, Guard, Limits, Lines, Metrics, plain
from flows.runs import Run, Runs
from flows.senders import FRESH, SENDERS, Secrets, Sender
from flows.signatures import Delivery
from tasks.bluegreen.errors import EXIT_CODES, BadInput, NonstopError
from tasks.bluegreen.units import Frozen

HOST, PORT = "127.0.0.1", 4280
SECRETS = "NONSTOP_WEBHOOK_SECRETS"  # names the folder with files of secrets
IDS = ("x-github-delivery", "idempotency-key", "x-gitlab-webhook-uuid", "webhook-id")
EVENTS = ("x-github-event", "x-gitlab-event")
HEALTHY = 2.0  # seconds in which the Prefect server answers, or is away

LOG = logging.getLogger("nonstop.webhook")


class Answer(Frozen):
    """What became of a delivery."""

    outcome: Literal["accepted", "ignored"]
    message: str
    runs: tuple[Run, ...] = ()


class Problem(Frozen):
    """Why a request was refused, and what to do."""

    message: str


class Health(Frozen):
    """Whether pushes can be handed over."""

    prefect: Literal["answers", "away"]


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


def create_app(limits: Limits | None = None, fresh: float = FRESH) -> FastAPI:
    """The receiver for the Prefect server that the settings name.

    Args:
        limits: what requests may take.
        fresh: seconds until a changed secret counts.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with get_client() as client:
            folder = os.environ.get(SECRETS)
            app.state.client, app.state.runs = client, Runs(client)
            app.state.secrets = Secrets(client, Path(folder) if folder else None, fresh)
            yield
            await app.state.runs.close()

    app = FastAPI(
        title="nonstop webhooks", docs_url=None, redoc_url=None, lifespan=lifespan, version="1"
    )
    app.add_middleware(Guard, limits=limits or Limits(), metrics=metrics)
    app.add_exception_handler(HTTPException, _told)
    app.add_exception_handler(Exception, _unexpected)
    app.state.metrics = metrics
    for sender in SENDERS:
        app.add_api_route(
            f"/webhooks/{sender.name}",
            _receiver(sender),
            methods=["POST"],
            status_code=202,
            response_model=Answer,
            summary=sender.title,
            description=sender.repeats,
            responses=REFUSALS
            | {202: {"description": "Its runs are on the Prefect server."}}
            | {200: {"model": Answer, "description": "It asks for no run, and says why."}},
            openapi_extra=_described(sender),
        )
    app.add_api_route(
        "/health",
        _health,
        response_model=Health,
        responses={503: {"model": Health, "description": "The Prefect server is away."}},
    )
    app.add_api_route("/metrics", _metrics, response_class=Metricses)
    return app


class Metricses(Response):
    """Prometheus's text."""

    media_type = CONTENT_TYPE_LATEST


def _receiver(sender: Sender) -> Callable[[Request], Awaitable[Response]]:
    async def receive(request: Request) -> Response:
        told = request.scope[TOLD]
        headers = request.headers
        told["sender"] = sender.name
        told["delivery"] = next((plain(headers[name]) for name in IDS if name in headers), "")
        told["event"] = next((plain(headers[name]) for name in EVENTS if name in headers), "")
        delivery = Delivery(
            headers=headers,
            body=await request.body(),
            token=request.query_params.get("token", ""),
            received=time.time(),
        )
        told["body"] = delivery.digest[:12]
        answer = await _answer(sender, delivery, request.app)
        told["outcome"] = answer.outcome
        told["runs"] = [str(run.run) for run in answer.runs]
        for run in answer.runs:
            request.app.state.metrics.runs.labels(run.app).inc()
        return JSONResponse(
            answer.model_dump(mode="json"),
            status_code=202 if answer.runs else 200,
            headers={"Location": answer.runs[0].address} if answer.runs else None,
        )

    return receive


async def _answer(sender: Sender, delivery: Delivery, app: FastAPI) -> Answer:
    """The runs of a delivery are on the server, or it asks for none.

    Raises:
        HTTPException: it is refused, in words that repeat nothing of it.
    """
    with _away():
        secrets = await app.state.secrets.of(sender.name)
    if not secrets:
        raise HTTPException(404, _off(sender))
    if not any([sender.proven(secret, delivery) for secret in secrets]):  # noqa: C419  # in equal time
        raise HTTPException(401, f"It is not signed with a secret of {sender.title}.")
    if delivery.header("x-github-event") == "ping":
        return Answer(outcome="ignored", message="The secret is right. Pushes can come.")
    said = sender.read(delivery, _payload(delivery))
    if not said.pushes:
        return Answer(outcome="ignored", message=said.why)
    runs: Runs = app.state.runs
    with _away():
        wanted = await runs.wanted(said.pushes)
    if not wanted:
        return Answer(
            outcome="ignored", message="No app has that image with a `deploy_on_push` for its tag."
        )
    with _away():
        asked = [
            await runs.request(subscriber, push, image, sender.name, delivery.received)
            for subscriber, push, image in wanted
        ]
    return Answer(outcome="accepted", message="Its runs are queued.", runs=tuple(asked))


@contextmanager
def _away() -> Iterator[None]:
    """What the Prefect server does not do within is to be delivered again."""
    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError, ValueError) as error:
        LOG.warning("the Prefect server: %s: %s", type(error).__name__, error)
        raise HTTPException(503, PROBLEMS[503], {"Retry-After": "30"}) from error
    except Busy:
        busy = "More is pushed than the Prefect server can take: deliver it again."
        raise HTTPException(503, busy, {"Retry-After": "5"}) from None


def _payload(delivery: Delivery) -> dict[str, Any]:
    body = delivery.body
    if delivery.header("content-type").startswith("application/x-www-form-urlencoded"):
        body = parse_qs(body).get(b"payload", [b""])[0]  # as GitHub sends it if told so
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        raise HTTPException(400, "The body is no JSON object.")
    return payload


def _off(sender: Sender) -> str:
    return (
        f"{sender.title} is off: store its secret, of at least 16 characters, in a Secret block "
        f"named nonstop-webhook-{sender.name}, or in the file {sender.name} of {SECRETS}."
    )


async def _health(request: Request) -> Response:
    """Whether the Prefect server answers, so that pushes can be handed over."""
    client: PrefectClient = request.app.state.client
    try:
        async with asyncio.timeout(HEALTHY):
            away = await client.api_healthcheck()
    except TimeoutError as error:
        away = error
    health = Health(prefect="away" if away else "answers")
    return JSONResponse(health.model_dump(), status_code=503 if away else 200)


async def _metrics(request: Request) -> Response:
    """For Prometheus."""
    return Metricses(generate_latest(request.app.state.metrics.registry))


async def _told(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse({"message": error.detail}, error.status_code, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    LOG.error("unexpected", exc_info=error, extra={"fields": request.scope.get(TOLD, {})})
    return JSONResponse({"message": "It failed here; the receiver's log says why."}, 500)


def _described(sender: Sender) -> dict[str, Any]:
    where = "query" if sender.proof == ("token",) else "header"
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        "parameters": [
            {"name": name, "in": where, "required": False, "schema": {"type": "string"}}
            for name in sender.proof
        ],
    }


def webhook_server(host: str, port: int) -> uvicorn.Server:
    """The receiver, ready to run; it stops in order when its `should_exit` is set.

    Raises:
        BadInput: the settings name no Prefect server.
    """
    if not PREFECT_API_URL.value():
        raise BadInput(
            "The receiver hands pushes to a Prefect server, and PREFECT_API_URL names none: set it "
            "to where yours is, like http://127.0.0.1:4200/api."
        )
    return uvicorn.Server(
        uvicorn.Config(
            create_app(),
            host=host,
            port=port,
            access_log=False,  # it would have the tokens of addresses; ours has not
            log_config=None,
            server_header=False,
            limit_concurrency=1000,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=15,
            h11_max_incomplete_event_size=16 * 1024,
        )
    )


def serve_webhooks(host: str = HOST, port: int = PORT) -> None:
    """Receives until SIGTERM or Ctrl-C; what is being answered then is answered first.

    Args:
        host: address to listen on.
        port: port to listen on.

    Raises:
        BadInput: the settings name no Prefect server.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    server = webhook_server(host, port)
    LOG.info("listening on %s:%d", host, port)
    server.run()


def main() -> None:
    """`python -m flows.webhook`."""
    parser = argparse.ArgumentParser(prog="python -m flows.webhook", description="Receive pushes.")
    parser.add_argument("--host", default=HOST, help=f"address to listen on ({HOST})")
    parser.add_argument("--port", default=PORT, type=int, help=f"port to listen on ({PORT})")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn repeats it when it is done
    try:
        serve_webhooks(given.host, given.port)
    except KeyboardInterrupt:
        sys.exit(0)
    except NonstopError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_CODES[error.outcome])


if __name__ == "__main__":
    main()
