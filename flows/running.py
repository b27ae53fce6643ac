"""The runs of one host: begun when they are due, and ended so that nothing is lost.

It is Prefect's own runner (what `serve` uses), because on SIGTERM its flows go back first and end
as Cancelled; a process worker kills them. What differs: a server that is away for a while ends
nothing, runs are asked for every second, a run that has only waited when the runner is stopped
waits for the next one, and one that a dead runner was about to begin is begun.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import httpx
import prefect.runner
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner._control_channel import ControlSignalStatus
from prefect.states import Scheduled
from prefect.types._datetime import now

from flows.inventory import ENTRYPOINT
from flows.parts import tell
from tasks.start_green import start_green

POLL = 1.0  # seconds between two looks for runs
READY = 10.0  # seconds between two of Prefect's own questions, which mark deployments as ready
ANSWER = 10.0  # seconds for the server to say what a run is called, before it ends without
STOPPED = "The runner was stopped before this run touched anything: the next one begins it."
UNHEARD = ControlSignalStatus.NOT_ACKNOWLEDGED
LONG = timedelta(minutes=1)  # after which no process comes any more for a run that is Pending


class Runner(prefect.runner.Runner):
    """Prefect's runner, with a loop of our own: it goes on while the server is away.

    Prefect's ends after three questions without an answer, and takes its deploys with it. Its
    question writes to the database, where SQLite takes one writer at a time; our look only reads.
    """

    def __init__(self) -> None:
        # Schedules go on when it is started again; waiting runs must not keep others out.
        super().__init__(query_seconds=READY, limit=None, pause_on_shutdown=False)
        self.blind = False
        self.ours: dict[UUID, str | None] = {}  # entrypoints of the deployments by their ids

    async def register(self, deployment: RunnerDeployment) -> None:
        """The deployment is on the server, and its runs are for this runner."""
        self.ours[await self.aadd_deployment(deployment)] = deployment.entrypoint

    async def serve(self, stop: asyncio.Event) -> None:
        """Runs what is asked for until `stop` is set; then every run has gone back."""
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
                    if time.monotonic() > due:
                        await self._begin_forsaken(client)
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
            deployment_id=FlowRunFilterDeploymentId(any_=list(self.ours)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=now("UTC")),
        )
        return bool(await client.read_flow_runs(flow_run_filter=waiting, limit=1))

    def idle(self) -> bool:
        """No run has a process, or is about to."""
        return not self._scheduled_run_poller._submitting_flow_run_ids

    async def _begin_forsaken(self, client: PrefectClient) -> None:
        """Runs that somebody was about to begin, and has not for long, are due again.

        The runner that was, or its host, has died. Prefect asks for Scheduled runs alone, and its
        heartbeats, by which dead runs are found, come only from runs that have begun.
        """
        pending = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=list(self.ours)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])),
        )
        for run in await client.read_flow_runs(flow_run_filter=pending):
            mine = run.id in self._scheduled_run_poller._submitting_flow_run_ids
            if not mine and run.state and run.state.timestamp < now("UTC") - LONG:
                with suppress(ObjectNotFound):
                    await _schedule(client, run, "Its runner died before it had begun.")
                    tell(f"run {run.name} is due again: its runner died before it had begun")

    async def _end(self, run: UUID) -> None:
        """The run went back and is Cancelled, or only waited and is Scheduled again.

        One that has ended, and whose process is about to, is left as it is. While no server
        answers it went back all the same.
        """
        try:
            async with asyncio.timeout(ANSWER):
                known = await self._client.read_flow_run(run)
                waits = await self._only_waits(known)
        except (httpx.HTTPError, TimeoutError):
            await self._process_manager.kill(run)
            return
        if waits:
            await self._put_off(known)
        elif known.state and known.state.is_final():
            if not await self._process_manager.wait_for_exit(run, ANSWER):
                await self._process_manager.kill(run)
        else:
            await self._cancel_run(known, "The runner was stopped.")

    async def _only_waits(self, run: FlowRun) -> bool:
        """Whether it is a deploy that has touched nothing yet: start-green is the first that does.

        A rollback means what served when it was asked for, so it is not begun at another time.
        """
        entrypoint = self.ours.get(run.deployment_id) if run.deployment_id else None
        if entrypoint != ENTRYPOINT or run.state_type not in (StateType.PENDING, StateType.RUNNING):
            return False
        begun = await self._client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
            task_run_filter=TaskRunFilter(name=TaskRunFilterName(like_=f"{start_green.name} ")),
            limit=1,
        )
        return not begun

    async def _put_off(self, run: FlowRun) -> None:
        """Its process has ended, and the run waits as if it had not begun."""
        deadline = time.monotonic() + ANSWER
        while (said := await self._control_channel.signal(run.id, "reschedule")) == UNHEARD:
            if time.monotonic() > deadline or not self._process_manager.get(run.id):
                break
            await asyncio.sleep(0.2)  # a process that only starts would be taken for crashed
        if said == ControlSignalStatus.ALREADY_CONCLUDED:
            return  # the run ended by itself just now
        await self._process_manager.kill(run.id)
        while run.id in self._scheduled_run_poller._submitting_flow_run_ids:
            await asyncio.sleep(0.1)  # Prefect looks how the process ended
        with suppress(httpx.HTTPError, ObjectNotFound):  # then it is found by its silence
            state = (await self._client.read_flow_run(run.id)).state
            if state is None or not state.is_final() or state.is_crashed():
                await _schedule(self._client, run, STOPPED)

    async def _handle_cancellation_observer_failure(self) -> None:
        """No run can be cancelled any more; as soon as none is at work, a new process can."""
        self.blind = True
        await super()._handle_cancellation_observer_failure()


async def _schedule(client: PrefectClient, run: FlowRun, message: str) -> None:
    """The run begins at its time, or, if that is over, as soon as a runner asks for it."""
    state: State[None] = Scheduled(scheduled_time=run.expected_start_time, message=message)
    await client.set_flow_run_state(run.id, state, force=True)
