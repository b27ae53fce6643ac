"""The runner of one host: registers the inventory's deployments and runs what is asked of them.

`nonstop up` and the systemd unit start it as `python -m flows.runner`. It is Prefect's own runner
(what `serve` uses), because on SIGTERM its flows go back first and end as Cancelled; a process
worker kills them. Two things differ: a server that is away for a while ends nothing, and runs are
asked for every second.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import httpx
import prefect.runner
import typer
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL
from prefect.types._datetime import now
from pydantic import ValidationError

from flows.automations import ensure_automations
from flows.inventory import ENTRYPOINT, FILE, app_of, deployments
from flows.parts import STARTUP, answers, tell
from tasks.bluegreen.app import complaints, parse
from tasks.bluegreen.errors import EXIT_CODES, BadInput, Failed, NonstopError

POLL = 1.0  # seconds between two looks for runs
READY = 10.0  # seconds between two of Prefect's own questions, which mark deployments as ready
ANSWER = 10.0  # seconds for the server to say what a run is called, before it ends without
SCHEDULE = {"active", "parameters", "slug", "replaces", "max_scheduled_runs"}  # beside cron, ...


def served(file: Path = FILE) -> list[RunnerDeployment]:
    """The inventory's deployments as a runner registers them; templates as they are written.

    Raises:
        BadInput: an entry that cannot be loaded, and why.
    """
    return [_served(file, entry) for entry in deployments(file)]


def _served(file: Path, entry: dict[str, Any]) -> RunnerDeployment:
    name, entrypoint = entry.get("name"), entry.get("entrypoint")
    limit = entry.get("concurrency_limit")
    try:
        load_flow_from_entrypoint(str(entrypoint), use_placeholder_flow=False)
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
    except BadInput:
        raise
    except ValidationError as error:
        raise BadInput(f"{file}: deployment {name}: {complaints(error)}.") from error
    except Exception as error:  # whatever an import of somebody's module raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{file}: deployment {name} ({entrypoint}) cannot be run: {said}") from error
    if entry.get("paused") is None:
        made.model_fields_set.discard("paused")  # so it is not sent: what the server has stays
    return made


def _schedule(described: dict[str, Any]) -> DeploymentScheduleCreate:
    """One schedule of prefect.yaml as Prefect's client sends it."""
    when = {name: value for name, value in described.items() if name not in SCHEDULE}
    beside = {name: described[name] for name in SCHEDULE & described.keys()}
    return DeploymentScheduleCreate.model_validate({"schedule": when} | beside)


async def keep_paused_schedules(deployment: RunnerDeployment) -> None:
    """Schedules that somebody paused on the server stay so, unless the inventory says otherwise."""
    async with get_client() as client:
        try:
            there = await client.read_deployment_by_name(deployment.full_name)
        except ObjectNotFound:
            return
    paused = [_times(one.schedule) for one in there.schedules if not one.active]
    for one in deployment.schedules or ():
        if "active" not in one.model_fields_set and _times(one.schedule) in paused:
            one.active = False


def _times(schedule: SCHEDULE_TYPES | None) -> dict[str, Any]:
    return schedule.model_dump(exclude={"anchor_date"}) if schedule else {}  # that of its making


class Runner(prefect.runner.Runner):
    """Prefect's runner, with a loop of our own: it goes on while the server is away.

    Prefect's ends after three questions without an answer, and takes its deploys with it. Its
    question writes to the database, where SQLite takes one writer at a time; our look only reads.
    """

    def __init__(self) -> None:
        # Schedules go on when it is started again; waiting runs must not keep others out.
        super().__init__(query_seconds=READY, limit=None, pause_on_shutdown=False)
        self.blind = False
        self.ours: list[UUID] = []

    async def serve(self, stop: asyncio.Event) -> None:
        """Runs what is asked for until `stop` is set; then every run has gone back and ended."""
        async with self:
            looking = asyncio.create_task(self._look())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({looking, stopped}, return_when=asyncio.FIRST_COMPLETED)
            looking.cancel()  # it may be waiting for a server that is away
            while not self.idle():  # one whose process had only been asked for comes later
                await asyncio.gather(*map(self._end, self._process_manager.flow_run_ids()))
                await asyncio.sleep(0.1)
        if not stop.is_set():
            looking.result()  # what it failed by, if it did

    async def _look(self) -> None:
        """Runs that are due are started; returns when none could be cancelled any more."""
        away, due = False, 0.0
        async with get_client() as client:
            while not (self.blind and self.idle()):
                try:
                    if time.monotonic() > due or await self._waiting(client):
                        await self._get_and_submit_flow_runs()  # type: ignore[no-untyped-call]
                        due = time.monotonic() + READY
                except httpx.HTTPError as error:
                    if not away:
                        tell(f"the Prefect server does not answer ({error}); runs go on")
                    away = True
                else:
                    if away:
                        tell("the Prefect server answers again")
                    away = False
                await asyncio.sleep(POLL)

    async def _waiting(self, client: PrefectClient) -> bool:
        """Whether a run of ours is due."""
        waiting = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=self.ours),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=now("UTC")),
        )
        return bool(await client.read_flow_runs(flow_run_filter=waiting, limit=1))

    def idle(self) -> bool:
        """No run has a process, or is about to."""
        return not self._scheduled_run_poller._submitting_flow_run_ids

    async def _end(self, run: UUID) -> None:
        """The run went back and is Cancelled; while no server answers it went back all the same."""
        try:
            known = await asyncio.wait_for(self._client.read_flow_run(run), ANSWER)
        except (httpx.HTTPError, TimeoutError):
            await self._process_manager.kill(run)
        else:
            await self._cancel_run(known, "The runner was stopped.")

    async def _handle_cancellation_observer_failure(self) -> None:
        """No run can be cancelled any more; as soon as none is at work, a new process can."""
        self.blind = True
        await super()._handle_cancellation_observer_failure()


async def run(found: Iterable[RunnerDeployment], notify: str | None) -> None:
    """The deployments are on the server, with their automations, and are run until SIGTERM.

    Raises:
        Failed: no server answers in time.
        BadInput: there is no such block to notify with.
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
    for deployment in found:
        await keep_paused_schedules(deployment)
        runner.ours.append(await runner.aadd_deployment(deployment))
    await asyncio.to_thread(ensure_automations, notify)
    names = ", ".join(f"{one.flow_name}/{one.name}" for one in found)
    tell(f"runs {names} for {url}")
    await runner.serve(stop)


def main(
    file: Annotated[Path, typer.Option(help="The inventory.")] = FILE,
    notify: Annotated[str | None, typer.Option(help="TYPE/NAME of a notification block.")] = None,
) -> None:
    """Register the deployments of the inventory, and run them until SIGTERM."""
    try:
        asyncio.run(run(served(file), notify))
    except NonstopError as error:
        tell(str(error))
        sys.exit(EXIT_CODES[error.outcome])  # 2, refused: starting it again would not help


if __name__ == "__main__":
    typer.run(main)
