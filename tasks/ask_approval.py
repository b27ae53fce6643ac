"""ask-approval: somebody says yes in Prefect before visitors get green; blue serves meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Running
from pydantic import Field, ValidationError

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import BadInput, NotApproved, Unavailable
from tasks.bluegreen.model import Plan, Preview, Replica, Site
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import PREVIEW_HEADER, FrontDoor
from tasks.bluegreen.site import render_site
from tasks.step import say, step

LONGEST = 3600  # seconds; the app is locked meanwhile
POLL = 2  # seconds between two looks at the answer


class Approval(RunInput):
    """The form that a run asks for while it waits."""

    approve: bool = Field(  # a switch: the UI's lists of choices don't open on every click
        default=False,
        title="Approve",
        description="On: visitors get the new release. Off: it goes, the one before serves on.",
    )
    by: str = Field(
        min_length=1, max_length=200, title="By", description="Your name, for the report."
    )
    why: str = Field(
        default="", max_length=1000, title="Why", description="Reason, for the report."
    )


def ensure_answerable(approve: bool) -> None:
    """Where somebody has to say yes, there is a UI in which to say it.

    Raises:
        Unavailable: there is none.
    """
    if approve and not PREFECT_API_URL.value():
        raise Unavailable(
            "`approve` needs a Prefect server, in whose UI somebody says yes: name it in "
            "PREFECT_API_URL. Nothing was touched."
        )


@step("ask-approval", timeout=LONGEST + 300)
def ask_approval(
    plan: Plan, replicas: tuple[Replica, ...], within: float, closes: datetime | None = None
) -> str:
    """Somebody said yes; who, and why, in a sentence. Only whoever has the token met green.

    Args:
        plan: of the run.
        replicas: green's.
        within: seconds in which the answer has to come.
        closes: when the app's release window does, which ends that time; None: nothing does.

    Raises:
        NotApproved: the answer was no, or none came.
    """
    app, release = plan.app.name, f"release {plan.green} of {plan.app.name}"
    now = datetime.now(UTC)
    until, limit, why = now + timedelta(seconds=within), f"within {within:g} s", ""
    if closes is not None and closes < until:
        until, why = closes, ", when the release window closes"
        limit = f"before the release window closed at {closes:%H:%M} UTC"
    unanswered = f"Nobody approved {release} {limit}, so it was refused."
    if until <= now:
        raise NotApproved(unanswered)
    text = _message(plan, _preview(plan, replicas), f"{until:%Y-%m-%d %H:%M:%S} UTC{why}")
    create_markdown_artifact(text, key=f"approval-{app}", description=f"Is {release} good?")
    say(
        f"waiting for a yes until {until:%H:%M:%S} UTC{why}; the run's artifact says how to see "
        "green"
    )
    form = Approval.with_initial_data(description=text)
    try:
        answer = pause_flow_run(
            wait_for_input=form,
            timeout=max(int((until - datetime.now(UTC)).total_seconds()), 1),
            poll_interval=POLL,
            key=secrets.token_hex(8),  # when the run is tried again, an answer of before is none
        )
    except FlowPauseTimeout as error:
        _run_on()
        raise NotApproved(unanswered) from error
    except ValidationError as error:
        raise NotApproved(
            f"The run was resumed without an answer, so {release} was refused."
        ) from (error)
    because = f": {answer.why}" if answer.why else ""
    if not answer.approve:
        raise NotApproved(f"{release[0].upper()}{release[1:]} was refused by {answer.by}{because}.")
    say(f"approved by {answer.by}{because}")
    return f"Approved by {answer.by}{because}."


def _preview(plan: Plan, replicas: tuple[Replica, ...]) -> str:
    """Blue's site with a way to green for whoever sends a token; how to use it, or why it is not.

    The token is made for this run and means nothing after it.
    """
    app = plan.app
    with Engine() as engine:
        nginx = Nginx(engine, app.proxy)
        blue = next((r for r in engine.releases(app.name) if r.number == plan.blue), None)
        if blue is None:
            there = ", ".join(f"{replica.address}:{app.port}" for replica in replicas)
            return f"No release serves yet, so there is no preview; green is at {there}."
        servers = tuple(f"{replica.address}:{app.port}" for replica in replicas)
        preview = Preview(number=plan.green, servers=servers, token=secrets.token_hex(16))
        addresses = tuple(replica.address for replica in blue.replicas)
        render = partial(render_site, blue.settings, blue.number, addresses, plan.nginx)
        if not _as_loaded(render, plan):
            return (
                f"The site's template is not the one that release {blue.number} was made live "
                f"with, so there is no preview; green is at {', '.join(servers)}."
            )
        site = render(preview)
        if not site.previews:
            return f"The template {app.proxy.template} does not use `pool`, so there is no preview."
        nginx.check(site)
        with nginx.installed(app.name, site.text, plan.holder):
            nginx.reload(app.name, site.generation)
        door = FrontDoor(engine, nginx, blue.settings)
    return (
        "Whoever sends this header meets the new release, everybody else the old one:\n\n"
        f"```sh\ncurl -H 'Host: {door.host}' "
        f"-H '{PREVIEW_HEADER}: {preview.token}' {door.base}{app.verify.path}\n```"
    )


def _as_loaded(render: Callable[[], Site], plan: Plan) -> bool:
    """Whether visitors would go on meeting what nginx has loaded: templates are known by path."""
    try:
        return render().generation == plan.blue_generation
    except BadInput:  # there is none any more
        return False


def _message(plan: Plan, preview: str, until: str) -> str:
    app = plan.app
    serves = f"release {plan.blue} serves" if plan.blue else "no release serves"
    return (
        f"Release {plan.green} of {app.name} ({app.image}) is healthy and waits for a yes; "
        f"{serves} meanwhile.\n\n{preview}\n\n"
        f"Until then no other deploy or rollback of {app.name} can start. Resume the run and "
        f"answer before {until}; no answer is a no."
    )


def _run_on() -> None:
    """The run is `Running` again, so that it can say itself how it ends."""
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(flow_run.id)), Running(), force=True)
