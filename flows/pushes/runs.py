"""The runs that pushes ask the Prefect server for: found, created once, and the newest kept.

Nothing is remembered here that the server does not know; what is kept is kept to answer quickly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from flows.inventory import ENTRYPOINT
from flows.names import name_of
from flows.pushes.batches import Batches
from flows.pushes.push import Push, Subscriber
from tasks.bluegreen.units import Frozen
from tasks.locked import LONGEST_WAIT
from tasks.overtaken import PUSH, PUSHED, RECENT, SUPERSEDED, age, pushed, why

FRESH = 1.0  # seconds that an app is known without asking whether it changed
SETTLE = 0.3  # seconds in which further pushes come before older ones are superseded
QUIET = 5.0  # seconds that superseding waits for pushes to stop coming
PAGE = 100
REMEMBERED = 4096  # deliveries whose run is known without asking

LOG = logging.getLogger("nonstop.webhook")


class Run(Frozen):
    """A run that a push asked for."""

    app: str
    run: UUID
    address: str
    """Where it is seen."""
    newer: bool = False
    """Whether it is the run of a newer push that came at the same time."""
    state: str = ""
    """What has become of it, if it was asked for before."""
    ended: bool = False
    """Whether that is its end."""
    not_before: datetime | None = None
    """When the app's release window opens, if none is open."""


class Runs:
    """Runs of the deployments of one Prefect server.

    Args:
        client: of that server.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._read = -1.0
        self._subscribers: tuple[Subscriber, ...] = ()
        self._latest: object = None  # the deployment that was changed last, and when
        self._reading = asyncio.Lock()
        self._known: OrderedDict[str, tuple[Run, float]] = OrderedDict()  # and when it was so
        self._since = time.time()  # what was pushed before may have come before
        self._batches = Batches(client)
        self._unsettled: set[UUID] = set()
        self._settling: asyncio.Task[None] | None = None

    async def wanted(self, pushes: Sequence[Push]) -> list[tuple[Subscriber, Push, str]]:
        """For each app that waits for one of the pushes: the newest of them, and its image."""
        came = time.monotonic()
        found = _matching(await self._apps(came - FRESH), pushes)
        return found or _matching(await self._apps(came), pushes)  # it may be described since

    async def request(
        self, app: Subscriber, push: Push, image: str, sender: str, received: float
    ) -> Run:
        """A run that deploys the image is on the server: a new one, or the push's own of before.

        Or the run of a newer push that came at the same time, as only the newest counts. That of
        a push that came before says what has become of it.

        Raises:
            Busy, NotCreated: as of Batches.
            Exception: of Prefect's client, when its server does not answer.
        """
        key = f"{PUSH}:{sender}:{push.id}:{app.deployment}" if push.id else None
        if key is None:
            run = await self._waiting(app, image)
        elif known := await self._before(key):
            return known
        else:
            run = None
        if run is None:
            moment = min(push.at.timestamp(), received) if push.at else received
            try:
                created = await self._batches.create(
                    app.deployment,
                    at=moment if push.at else None,
                    parameters={"image": image, "wait": LONGEST_WAIT},
                    name=name_of({"app": app.name, "image": image}),
                    tags=[f"app:{app.name}", PUSH, sender],
                    labels={PUSHED: moment},
                    idempotency_key=key,
                    enforce_parameter_schema=False,  # the run says what is wrong with the app
                )
            except Exception:
                self._latest = None  # the deployment may be gone
                raise
            run = Run(
                app=app.name,
                run=created.id,
                address=_address(created.id),
                newer=created.newer,
            )
        self._settle_soon(app.deployment)
        if key is None:
            return run
        self._known[key] = run, time.monotonic() if moment > self._since else -FRESH
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return await self._before(key) or run

    async def settle(self, deployment: UUID) -> None:
        """Of the runs that have not begun, only that of the newest push is left to begin.

        All others end as Superseded, also when the newest has begun or ended long ago. A run that
        begins meanwhile looks itself, once it has the app's lock.
        """
        listed = await self._client.read_flow_runs(
            flow_run_filter=pushed(deployment),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=RECENT,
        )
        newest = max(listed, key=age, default=None)
        if newest is None:
            return
        for run in await self._scheduled(deployment):
            if run.id != newest.id and age(run) <= age(newest):
                await self._quiet()
                now = (await self._client.read_flow_run(run.id)).state
                if now is not None and now.is_scheduled():  # it may have begun meanwhile
                    state: State[None] = Cancelled(name=SUPERSEDED, message=why(newest))
                    await self._client.set_flow_run_state(run.id, state)

    async def close(self) -> None:
        """Nothing goes on in the background."""
        if self._settling is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settling, timeout=5)

    async def _apps(self, since: float) -> tuple[Subscriber, ...]:
        """The apps as they were then or later; all who wait for a reading share it."""
        async with self._reading:
            if self._read < since:
                began = time.monotonic()
                changed = await self._client.read_deployments(
                    limit=1, sort=DeploymentSort.UPDATED_DESC
                )
                latest = {(one.id, one.updated) for one in changed}
                if latest != self._latest:
                    self._subscribers, self._latest = await self._all_apps(), latest
                self._read = began
            return self._subscribers

    async def _all_apps(self) -> tuple[Subscriber, ...]:
        found: list[Subscriber] = []
        for offset in range(0, 100 * PAGE, PAGE):
            page = await self._client.read_deployments(limit=PAGE, offset=offset)
            for deployment in page:
                app = deployment.parameters.get("app")
                if deployment.entrypoint == ENTRYPOINT and isinstance(app, dict):
                    found += _subscriber(app, deployment.id)
            if len(page) < PAGE:
                break
        return tuple(found)

    async def _scheduled(self, deployment: UUID) -> Iterable[FlowRun]:
        begun_by_nobody = pushed(deployment)
        begun_by_nobody.state = FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        )
        return await self._client.read_flow_runs(flow_run_filter=begun_by_nobody, limit=200)

    async def _before(self, key: str) -> Run | None:
        """The run of that key, and what has become of it; None: none is known any more."""
        run, looked = self._known.get(key, (None, 0.0))
        if run is None or time.monotonic() - looked < FRESH:
            return run
        self._known[key] = run, time.monotonic()  # one looks; who comes meanwhile does not wait
        try:
            state = (await self._client.read_flow_run(run.run)).state
        except ObjectNotFound:
            self._known.pop(key, None)
            return None
        if state and not state.is_scheduled():
            run = run.model_copy(update={"state": state.name, "ended": state.is_final()})
            self._known[key] = run, time.monotonic()
        return run

    async def _waiting(self, app: Subscriber, image: str) -> Run | None:
        """A run that has not begun and deploys that image: it will take what is there then."""
        for run in await self._scheduled(app.deployment):
            if run.parameters.get("image") == image:
                return Run(app=app.name, run=run.id, address=_address(run.id))
        return None

    def _settle_soon(self, deployment: UUID) -> None:
        self._unsettled.add(deployment)
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle_all())

    async def _quiet(self) -> None:
        """Nobody waits for a run, who would wait longer for what can be done later."""
        deadline = time.monotonic() + QUIET
        while not self._batches.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _settle_all(self) -> None:
        while self._unsettled:
            await asyncio.sleep(SETTLE)
            await self._quiet()
            deployment = self._unsettled.pop()
            try:
                await self.settle(deployment)
            except Exception:  # whatever it is, runs look themselves later
                LOG.warning("older runs could not be superseded now", exc_info=True)


@lru_cache(256)  # pushes of one moment share a run
def _address(run: UUID) -> str:
    return url_for("flow-run", run) or ""


def _matching(
    apps: Sequence[Subscriber], pushes: Sequence[Push]
) -> list[tuple[Subscriber, Push, str]]:
    found = []
    for app in apps:
        taken = [(push, image) for push in pushes if (image := app.takes(push))]
        if taken:
            push, image = max(taken, key=lambda one: one[0].at.timestamp() if one[0].at else 0.0)
            found.append((app, push, image))
    return found


def _subscriber(app: dict[str, object], deployment: UUID) -> list[Subscriber]:
    try:
        return [Subscriber.model_validate(app | {"deployment": deployment})]
    except ValidationError:
        LOG.warning("deployment %s: its app has no name and image, no push finds it", deployment)
        return []
