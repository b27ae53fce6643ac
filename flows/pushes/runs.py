"""The runs that pushes ask the Prefect server for: found, created once, and the newest kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from flows.inventory import ENTRYPOINT
from flows.names import name_of
from flows.pushes.handover import Gone, Handover
from flows.pushes.outbox import Kept, Outbox
from flows.pushes.push import Push, Subscriber
from flows.pushes.shared import Shared, within
from tasks.bluegreen.units import Frozen
from tasks.locked import LONGEST_WAIT
from tasks.overtaken import PUSH, PUSHED, RECENT, SUPERSEDED, age, pushed, why

FRESH = 1.0  # seconds that an app is known without asking whether it changed
SETTLE = 0.3  # seconds in which further pushes come before older ones are superseded
QUIET = 5.0  # seconds that superseding waits for pushes to stop coming
ANSWER = 2.0  # seconds in which the server says what it is asked, or is away
LOOKS = 30.0  # seconds between two looks at the apps when no push comes
ALONE = 2.0  # seconds that a push's answer waits for its run, when no other push waits for one
LOOK = 5.0  # seconds that who looks for a push's run waits for it
PAGE = 100
PUSHES = "/webhooks/pushes"  # where a push's run is found by the push's id
REMEMBERED = 4096  # deliveries whose run, and its state, is known without asking

AWAY = (httpx.HTTPError, PrefectException, OSError, ValueError)

LOG = logging.getLogger("nonstop.webhook")


class Run(Frozen):
    """A run that a push asked for."""

    app: str
    run: UUID | None
    """None: the server has not made it yet."""
    address: str
    """Where it is seen, or will be: an address of the receiver's then, which leads there."""
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
        outbox: where pushes are kept until it has their runs.
    """

    def __init__(self, client: PrefectClient, outbox: Outbox) -> None:
        self._client, self._outbox = client, outbox
        self._read = -1.0
        self._subscribers: tuple[Subscriber, ...] = ()
        self._latest: object = None  # the deployment that was changed last, and when
        self._reading = Shared(self._read_apps)
        self._away = asyncio.Event()  # the server did not answer in time, and has not since
        self._known: OrderedDict[str, tuple[Run, float]] = OrderedDict()  # and when it was so
        self._since = time.time()  # what was pushed before may have come before
        self._unsettled: set[UUID] = set()
        self._settling: asyncio.Task[None] | None = None
        self._handover = Handover(client, outbox, self._handed)
        self._looking = asyncio.create_task(self._look())

    @property
    def waiting(self) -> int:
        """Pushes that are kept and are no runs yet."""
        return self._handover.waiting

    async def wanted(self, pushes: Sequence[Push]) -> list[tuple[Subscriber, Push, str]]:
        """For each app that waits for one of the pushes: the newest of them, and its image.

        While the server is away, those that were known last: nobody describes others then.

        Raises:
            Exception: of Prefect's client, when its server does not answer and none is known.
        """
        came = time.monotonic()
        if self._away.is_set() and (found := _matching(self._subscribers, pushes)):
            return found
        try:
            async with asyncio.timeout(ANSWER):
                found = _matching(await self._apps(came - FRESH), pushes)
                return found or _matching(await self._apps(came), pushes)  # described since?
        except AWAY as error:
            self._is_away(error)
            found = _matching(self._subscribers, pushes)
            if not found:
                raise
            return found

    async def request(
        self, app: Subscriber, push: Push, image: str, sender: str, received: float
    ) -> Run:
        """The push is kept, and a run that deploys the image is on the server, or follows.

        Or the run of a newer push that came at the same time, as only the newest counts. That of
        a push that came before says what has become of it.

        Raises:
            Busy: too many are kept.
            Gone: the app's deployment is.
            sqlite3.Error: it cannot be kept.
        """
        key = f"{PUSH}:{sender}:{push.id or uuid4()}:{app.deployment}"
        known = await self._before(key) if push.id else await self._unbegun(app, image)
        if known:
            return known
        moment = min(push.at.timestamp(), received) if push.at else received
        waits = self._away.is_set() or self._handover.of(app.deployment)
        alone = self._handover.idle and not waits
        kept = await self._handover.keep(
            Kept(
                id=str(uuid4()),
                key=key,
                app=app.name,
                deployment=app.deployment,
                at=moment if push.at else None,
                fields={
                    "parameters": {"image": image, "wait": LONGEST_WAIT},
                    "name": name_of({"app": app.name, "image": image}),
                    "tags": [f"app:{app.name}", PUSH, sender],
                    "labels": {PUSHED: moment},
                },
            )
        )
        found = await self._handover.run_of(kept, ALONE) if alone else kept
        if found is None:
            raise Gone(f"the deployment of {app.name} is gone")
        run = _run(found)
        if not run.run or not push.id:
            return run
        self._remember(key, run, time.monotonic() if moment > self._since else -FRESH)
        return await self._before(key) or run

    async def of(self, identity: str) -> Run | None:
        """The run of the push with that id, which is waited for a moment; None: no such push."""
        kept = self._outbox.of_id(identity)
        if kept and not kept.run:
            self._handover.take_up(kept)
            kept = await self._handover.run_of(kept, LOOK)
        return _run(kept) if kept else None

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
        self._looking.cancel()
        self._reading.cancel()
        await self._handover.close()
        if self._settling is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settling, timeout=3)

    async def _apps(self, since: float) -> tuple[Subscriber, ...]:
        """The apps as they were then or later; all who wait for a reading share it."""
        while self._read < since:
            await self._reading()
        return self._subscribers

    async def _read_apps(self) -> None:
        began = time.monotonic()
        changed = await self._client.read_deployments(limit=1, sort=DeploymentSort.UPDATED_DESC)
        latest = {(one.id, one.updated) for one in changed}
        if latest != self._latest:
            self._subscribers, self._latest = await self._all_apps(), latest
        self._read = began
        if self._away.is_set() and time.monotonic() - began < ANSWER:
            self._away.clear()
            LOG.info("the Prefect server answers again")

    def _is_away(self, error: Exception) -> None:
        """Until it has answered nobody waits for it any more."""
        if not self._away.is_set():
            self._away.set()
            LOG.warning("the Prefect server does not answer: %r", error)

    async def _look(self) -> None:
        """The apps are known before the server is away, also if no push comes for long."""
        while True:
            try:
                await self._apps(time.monotonic() - FRESH)
            except Exception as error:  # noqa: BLE001  # whatever it is, it looks again
                self._is_away(error)
            if self._away.is_set():
                await asyncio.sleep(FRESH)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._away.wait(), LOOKS)

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
        run, looked = self._known.get(key, (None, -FRESH))
        kept = self._outbox.of_key(key) if run is None else None
        if kept:
            self._handover.take_up(kept)  # another receiver may have kept it, and ended
            run = _run(kept)
        fresh = time.monotonic() - looked < FRESH
        if run is None or run.run is None or fresh or self._away.is_set():
            return run
        self._remember(key, run, time.monotonic())  # one looks; who comes meanwhile does not wait
        try:
            state = (await within(ANSWER, self._client.read_flow_run(run.run))).state
        except ObjectNotFound:
            self._known.pop(key, None)
            kept = self._outbox.of_key(key)
            if kept and kept.run == run.run:
                await self._handover.forget(kept)
            return None
        except AWAY as error:
            self._is_away(error)
            return run
        if state and not state.is_scheduled():
            run = run.model_copy(update={"state": state.name, "ended": state.is_final()})
            self._remember(key, run, time.monotonic())
        return run

    def _remember(self, key: str, run: Run, looked: float) -> None:
        self._known[key] = run, looked
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _unbegun(self, app: Subscriber, image: str) -> Run | None:
        """A run that has not begun and deploys that image: it will take what is there then."""
        for kept in self._handover.of(app.deployment):
            if kept.fields["parameters"]["image"] == image:
                return _run(kept)
        if self._away.is_set():
            return None  # it is kept, at worst as a second run of that image
        try:
            scheduled = await within(ANSWER, self._scheduled(app.deployment))
        except AWAY as error:
            self._is_away(error)
            return None
        for run in scheduled:
            if run.parameters.get("image") == image:
                return Run(app=app.name, run=run.id, address=_address(run.id))
        return None

    def _handed(self, deployment: UUID, gone: bool) -> None:
        if gone:
            self._read, self._latest = -1.0, None  # the apps are to be read again
        else:
            self._settle_soon(deployment)

    def _settle_soon(self, deployment: UUID) -> None:
        self._unsettled.add(deployment)
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle_all())

    async def _quiet(self) -> None:
        """Nobody waits for a run, who would wait longer for what can be done later."""
        deadline = time.monotonic() + QUIET
        while not self._handover.idle and time.monotonic() < deadline:
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


def _run(push: Kept) -> Run:
    address = _address(push.run) if push.run else f"{PUSHES}/{push.id}"
    return Run(app=push.app, run=push.run, address=address, newer=push.newer)


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
