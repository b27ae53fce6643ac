"""The runner of one host: registers the inventory's deployments and runs what is asked of them.

`nonstop up` and the systemd unit start it as `python -m flows.runner`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.utilities.schema_tools import validate
from pydantic import ValidationError

from flows.automations import ensure_automations
from flows.inventory import ENTRYPOINT, FILE, app_of, deployments
from flows.parts import STARTUP, answers, tell
from flows.registered import remember
from flows.running import Runner
from tasks.bluegreen.app import complaints, parse
from tasks.bluegreen.errors import EXIT_CODES, BadInput, Failed, NonstopError

SCHEDULE = {"active", "parameters", "slug", "replaces", "max_scheduled_runs"}  # beside cron, ...
REFUSALS = (400, 409, 422)  # statuses with which a server refuses a deployment for good
INVALID = "exception_detail"  # where a server says which of its fields are wrong


def served(file: Path = FILE) -> list[RunnerDeployment]:
    """The inventory's deployments as a runner registers them; templates as they are written.

    Raises:
        BadInput: an entry that cannot be loaded, or that the server would not take, and why.
    """
    return [_served(file, entry) for entry in deployments(file)]


def _served(file: Path, entry: dict[str, Any]) -> RunnerDeployment:
    name, entrypoint = entry.get("name"), entry.get("entrypoint")
    limit = entry.get("concurrency_limit")
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(
            str(entrypoint), use_placeholder_flow=False
        )
        if entrypoint == ENTRYPOINT:
            parse(app_of(file, entry))
        made = RunnerDeployment.from_entrypoint(
            entrypoint=str(entrypoint),
            name=str(name),
            parameters=entry.get("parameters"),
            description=entry.get("description"),
            tags=entry.get("tags"),
            version=entry.get("version"),
            paused=entry.get("paused"),
            schedules=[_schedule(one) for one in entry.get("schedules") or ()],
            concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
            triggers=entry.get("triggers"),
            enforce_parameter_schema=entry.get("enforce_parameter_schema", True),
        )
        wrong = _wrong(made, flow.parameters.model_dump(exclude_unset=True))
    except BadInput:
        raise
    except ValidationError as error:
        raise BadInput(f"{file}: deployment {name}: {complaints(error)}.") from error
    except Exception as error:  # whatever an import of somebody's module raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{file}: deployment {name} ({entrypoint}) cannot be run: {said}") from error
    if wrong:
        raise BadInput(f"{file}: deployment {name}: {wrong}.")
    if entry.get("paused") is None:
        made.model_fields_set.discard("paused")  # so it is not sent: what the server has stays
    return made


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    """One schedule of prefect.yaml as Prefect's client sends it."""
    when = {name: value for name, value in described.items() if name not in SCHEDULE}
    beside = {name: described[name] for name in SCHEDULE & described.keys()}
    return DeploymentScheduleCreate.model_validate({"schedule": when} | beside)


def _wrong(deployment: RunnerDeployment, schema: dict[str, Any]) -> str:
    """What the server would say to the parameters, which it holds against the flow's schema."""
    if not deployment.enforce_parameter_schema:
        return ""
    sent = deployment.model_dump(mode="json", include={"parameters"})["parameters"]
    return "; ".join(map(_told, validate(sent, schema, ignore_required=True)))


def _told(error: Any) -> str:
    """An error of JSON Schema's as `complaints` tells those of pydantic's, without secrets."""
    while error.context:  # of several forms the one that fits best: its error lies deepest
        error = max(error.context, key=lambda one: len(one.absolute_path))
    where, given = ".".join(map(str, error.absolute_path)), error.instance
    said = error.message.removeprefix(repr(given)).strip()
    shown = f" (given: {given!r})" if isinstance(given, int | float | str) else ""
    return f"{where}: {said}{shown}"


async def settle_schedules(deployment: RunnerDeployment) -> None:
    """Schedules that somebody paused on the server stay so, unless the inventory says otherwise.

    What has left the inventory is gone: where all have slugs the server changes those that are
    named, keeps every other, and refuses one without a slug.
    """
    wanted = deployment.schedules or []
    async with get_client() as client:
        try:
            there = await client.read_deployment_by_name(deployment.full_name)
        except ObjectNotFound:
            return
        paused = [_times(one.schedule) for one in there.schedules if not one.active]
        for one in wanted:
            if "active" not in one.model_fields_set and _times(one.schedule) in paused:
                one.active = False
        slugs = {one.slug for one in there.schedules}
        if None in slugs:
            return  # the server makes all of them anew
        for one in wanted:
            if one.slug in slugs or one.replaces not in slugs:
                one.replaces = None  # it was renamed before
            one.parameters = one.parameters or {}  # else it keeps those that it had
        named = {one.replaces or one.slug for one in wanted}
        for old in there.schedules:
            if None in named or old.slug not in named:
                await client.delete_deployment_schedule(there.id, old.id)


def _times(schedule: SCHEDULE_TYPES | None) -> dict[str, Any]:
    return schedule.model_dump(exclude={"anchor_date"}) if schedule else {}  # that of its making


async def run(file: Path, found: Sequence[RunnerDeployment], notify: str | None) -> None:
    """The deployments are on the server, with their automations, and are run until SIGTERM.

    Args:
        file: the inventory.
        found: its deployments.
        notify: TYPE/NAME of the notification block by which failures are told.

    Raises:
        Failed: no server answers in time.
        BadInput: the server refuses a deployment, or there is no such block to notify with.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    url = str(PREFECT_API_URL.value())
    if not await answers(url, STARTUP, stop):
        if stop.is_set():
            return
        raise Failed(f"No Prefect server answers at PREFECT_API_URL={url}: start it.")
    runner = Runner()
    await remember(file, [one.full_name for one in found])  # before it changes the others: a
    for deployment in found:  # receiver looks for apps again when a deployment changes
        try:
            await settle_schedules(deployment)
            await runner.register(deployment)
        except (DeploymentApplyError, PrefectHTTPStatusError) as error:
            if not (words := _refusal(error)):
                raise
            name = deployment.full_name
            raise BadInput(f"{file}: the Prefect server refuses {name}: {words}") from error
    await asyncio.to_thread(ensure_automations, notify)
    names = ", ".join(f"{one.flow_name}/{one.name}" for one in found)
    tell(f"runs {names} for {url}")
    await runner.serve(stop)


def _refusal(error: DeploymentApplyError | PrefectHTTPStatusError) -> str:
    """Why the server takes no such deployment, in its words; empty: another try may help."""
    cause = error.__cause__ if isinstance(error, DeploymentApplyError) else error
    if not isinstance(cause, PrefectHTTPStatusError) or cause.response.status_code not in REFUSALS:
        return ""
    said = cause.response.json()
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in said.get(INVALID, ())]
    return "; ".join(found) or str(said.get("detail") or cause)


def main(
    file: Annotated[Path, typer.Option(help="The inventory.")] = FILE,
    notify: Annotated[str | None, typer.Option(help="TYPE/NAME of a notification block.")] = None,
) -> None:
    """Register the deployments of the inventory, and run them until SIGTERM."""
    try:
        asyncio.run(run(file, served(file), notify))
    except NonstopError as error:
        tell(str(error))
        sys.exit(EXIT_CODES[error.outcome])  # 2, refused: starting it again would not help


if __name__ == "__main__":
    typer.run(main)
