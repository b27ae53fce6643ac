"""Requests that come outside a release window, and requests for a later time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Scheduled
from prefect.utilities.urls import url_for

from flows.account import note
from flows.names import app_name, name_of
from tasks.bluegreen.app import App
from tasks.bluegreen.errors import BadInput, OutsideWindow, Postponed, Unavailable
from tasks.bluegreen.window import Window, is_open, next_closing, next_opening
from tasks.locked import LONGEST_WAIT
from tasks.overtaken import PUSHED, SUPERSEDED, age

POSTPONED = "postponed"  # tag of runs that wait for an opening
EARLY = timedelta(seconds=2)  # Prefect may begin a run before its time, while it is still closed


def ensure_in_window(app: App, override: str) -> datetime | None:
    """The App may be deployed now, or somebody gave a reason why it is all the same.

    Returns:
        When the window closes; None: nobody has to mind that.

    Raises:
        Postponed: a run of the same deployment, or of the app's, waits for the next opening.
        OutsideWindow: the app has no deployment, so that nobody would start it later.
        Unavailable: the server does not answer.
    """
    now = datetime.now(UTC)
    if now < flow_run.scheduled_start_time < now + EARLY:
        now = flow_run.scheduled_start_time
    reason = override.strip()
    if is_open(app.window, now):
        return None if reason else next_closing(app.window, now)
    if not reason:
        _postpone(app, next_opening(app.window, now))
    note(f"Outside its release windows, with the reason: {reason}")
    get_run_logger().warning("%s: outside its release windows: %s", app.name, reason)
    return None


def schedule(app: App, at: str, **parameters: Any) -> str:
    """A run of the app's deployment waits for that time; what was done, in a sentence.

    If another run is at work then it waits for that too, unless the parameters say how long.

    Args:
        app: what is going to be deployed.
        at: time of day, today or tomorrow, or date and time, in this machine's time zone.
        parameters: of the run, beside those of the deployment.

    Raises:
        BadInput: that is no time to come, or the server has no deployment of the app.
        Unavailable: no Prefect server runs by itself, or it does not answer.
    """
    when = moment(at, datetime.now().astimezone())
    url = PREFECT_API_URL.value()
    if not url:
        raise Unavailable(
            "A deploy at a later time needs a Prefect server and its runner: name the server in "
            "PREFECT_API_URL. Nothing was scheduled."
        )
    try:
        with get_client(sync_client=True) as client:
            found = deployment_of(client, app)
            if found is None:
                raise BadInput(
                    f"The Prefect server at {url} has no deployment of {app.name}: make it with "
                    "`prefect deploy --all`. Nothing was scheduled."
                )
            if "wait" not in found.parameters:
                parameters = {"wait": LONGEST_WAIT} | parameters  # nobody is there to ask again
            run = client.create_flow_run_from_deployment(
                found.id,
                parameters=parameters,
                name=name_of(found.parameters | parameters),
                state=Scheduled(scheduled_time=when),
                tags=[f"app:{app.name}"],
            )
    except httpx.HTTPError as error:
        raise Unavailable(
            f"The Prefect server at {url} did not schedule it ({error}). Nothing was scheduled."
        ) from error
    sentence = f"{app.name} is going to be deployed at {told(when, app.window)} by {_where(run)}."
    if not is_open(app.window, when):
        opening = told(next_opening(app.window, when), app.window)
        sentence += f" That is outside its release windows: it then waits until {opening}."
    return sentence


def moment(at: str, now: datetime) -> datetime:
    """The time that is meant: the next such time of day, or a date and time to come.

    Raises:
        BadInput: it is neither.
    """
    try:
        if len(at) <= len("00:00"):
            clock = datetime.strptime(at, "%H:%M").time()  # of the day, no date
            days = (now.date() + timedelta(days=day) for day in range(3))
            times = (datetime.combine(day, clock).astimezone() for day in days)
            return next(time for time in times if time > now)
        when = datetime.fromisoformat(at)
    except ValueError as error:
        raise BadInput(
            f"{at!r} is not a time: write it like 03:00, or like 2030-01-31T03:00."
        ) from error
    when = when if when.tzinfo else when.astimezone()
    if when <= now:
        raise BadInput(f"{at!r} is over: name a time to come.")
    return when


def told(when: datetime, windows: Sequence[Window]) -> str:
    """A time as an app's people read it: in the zone of its windows, else this machine's."""
    zones = {window.time_zone for window in windows}
    local = windows[0].local(when) if len(zones) == 1 else when.astimezone()
    return f"{local:%a %Y-%m-%d %H:%M %Z}"


def deployment_of(client: SyncPrefectClient, app: App) -> DeploymentResponse | None:
    """The app's, on a server that runs by itself; None: there is none."""
    if not PREFECT_API_URL.value():
        return None
    of_deploy = FlowFilter(name=FlowFilterName(any_=["deploy"]))
    there = client.read_deployments(flow_filter=of_deploy)
    return next((d for d in there if app_name(d.parameters.get("app")) == app.name), None)


def _postpone(app: App, opening: datetime) -> NoReturn:
    when = told(opening, app.window)
    try:
        with get_client(sync_client=True) as client:
            me = client.read_flow_run(UUID(str(flow_run.id)))
            of = me.deployment_id or getattr(deployment_of(client, app), "id", None)
            if of is None:
                _refuse(app, opening)
            run: FlowRun | None = None
            while run is None or not (run.state and run.state.is_scheduled()):
                # the same request waits once; one that somebody cancelled does not count
                run = client.create_flow_run_from_deployment(
                    of,
                    parameters=me.parameters | {"wait": LONGEST_WAIT},  # nobody is there to ask
                    name=name_of(me.parameters),
                    state=Scheduled(scheduled_time=opening, message=f"Its window opens {when}."),
                    tags={f"app:{app.name}", POSTPONED, *me.tags},
                    labels={PUSHED: me.labels[PUSHED]} if PUSHED in me.labels else None,
                    idempotency_key=_key(app.name, opening, me, run),
                )
            _supersede(client, app, run)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"{app.name} may not be deployed before {when}, and the run for it could not be "
            f"scheduled ({error}): ask again. Nothing was touched."
        ) from error
    raise Postponed(
        f"{app.name} may not be deployed before {when}: {_where(run)} waits for it. "
        "With a reason as `override` it is deployed at once."
    )


def _supersede(client: SyncPrefectClient, app: App, newest: FlowRun) -> None:
    """What was asked for before and waits as well gives way; pushes see to that themselves."""
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[newest.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        tags=FlowRunFilterTags(all_=[POSTPONED, f"app:{app.name}"]),
    )
    message = f"A later request asked for run {newest.name}. Nothing was touched."
    for run in client.read_flow_runs(flow_run_filter=waiting, limit=200):
        both_pushed = PUSHED in run.labels and PUSHED in newest.labels
        if age(run) < age(newest) and not both_pushed:
            client.set_flow_run_state(run.id, Cancelled(name=SUPERSEDED, message=message))


def _key(app: str, opening: datetime, asked: FlowRun, over: FlowRun | None) -> str:
    """Of the run that waits for the opening, after one that waits no more."""
    pushed, before = asked.labels.get(PUSHED), str(over.id) if over else ""
    same = json.dumps([app, opening.isoformat(), asked.parameters, pushed, before], sort_keys=True)
    return hashlib.sha256(same.encode()).hexdigest()


def _refuse(app: App, opening: datetime) -> NoReturn:
    raise OutsideWindow(
        f"{app.name} may not be deployed before {told(opening, app.window)}: ask again then (a "
        "Prefect server with a deployment of it, as `nonstop up` has, would do it by itself), or "
        "give a reason with `--override`. Nothing was touched."
    )


def _where(run: FlowRun) -> str:
    return f"run {run.name} ({url_for(run) or run.id})"
