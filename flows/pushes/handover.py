"""Pushes are kept, and handed over to the Prefect server as it can take them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.exceptions import PrefectHTTPStatusError

from flows.pushes.outbox import Kept, Outbox

LARGEST = 50  # runs in one request; the server takes at most 100
MOST = 5_000  # pushes that wait for their run
AGAIN = (0.01, 0.1, 0.2, 0.3, 1, 3, 10)  # s before further tries; a locked SQLite says so at once
QUIET = 3  # tries that may fail without a word
GONE = "Deployment not found"  # the server's words; a 404 may also be that of a proxy before it
LAST = 2.0  # seconds in which what waits is handed over when the receiver ends

LOG = logging.getLogger("nonstop.webhook")


class Busy(Exception):
    """More pushes wait than can be kept."""


class Gone(ValueError):
    """The deployment that a push asks for is no longer on the server."""


class Handover:
    """Makes runs of pushes; one request is under way at a time.

    Of 20 at a time a server on SQLite refuses half at once, as it is locked, and with 30 it stands
    still for a minute; one after the other they take half the time. Of the pushes that wait for
    one request only the newest of each deployment gets a run, which is tagged with their number.

    Args:
        client: of the server.
        outbox: where pushes are kept; what waits in it is handed over from the start.
        handed: told of a deployment that has a new run, or (True) is gone.
    """

    def __init__(
        self, client: PrefectClient, outbox: Outbox, handed: Callable[[UUID, bool], None]
    ) -> None:
        self._client, self._outbox, self._handed = client, outbox, handed
        self._arriving = 0
        self._asked: list[tuple[Kept, asyncio.Future[Kept]]] = []
        self._keeping: asyncio.Task[None] | None = None
        self._waiting: dict[UUID, list[Kept]] = {}
        self._sending: dict[UUID, asyncio.Task[None]] = {}
        self._late: set[UUID] = set()  # deployments whose pushes the server does not take now
        self._runs: dict[str, asyncio.Future[Kept | None]] = {}  # by id, of all that wait
        self._turn = asyncio.Lock()
        self._disk = ThreadPoolExecutor(1, "outbox")
        for push in outbox.waiting():
            self.take_up(push)

    @property
    def waiting(self) -> int:
        """Pushes that are no runs yet."""
        return self._arriving + len(self._runs)

    @property
    def idle(self) -> bool:
        """Nothing is being handed over; what the server does not take now does not count."""
        return not self._arriving and self._sending.keys() <= self._late

    def of(self, deployment: UUID) -> Sequence[Kept]:
        """The pushes of a deployment that are no runs yet."""
        return tuple(self._waiting.get(deployment, ()))

    async def keep(self, push: Kept) -> Kept:
        """It is on the disk, and is handed over from now on; or that of before with its key.

        Raises:
            Busy: too many wait.
            sqlite3.Error: the disk is full, or such.
        """
        if self.waiting >= MOST:
            raise Busy
        kept: asyncio.Future[Kept] = asyncio.get_running_loop().create_future()
        self._asked.append((push, kept))
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep())
        self._arriving += 1
        try:
            return await kept
        finally:
            self._arriving -= 1

    def take_up(self, push: Kept) -> None:
        """It is handed over from now on, if it is not yet."""
        if push.run or push.id in self._runs:
            return
        self._runs[push.id] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(push.deployment, []).append(push)
        if push.deployment not in self._sending:
            self._sending[push.deployment] = asyncio.create_task(self._send(push.deployment))

    async def run_of(self, push: Kept, seconds: float) -> Kept | None:
        """The push with its run; without, if it takes longer. None: its deployment is gone."""
        if push.run:
            return push
        if push.id not in self._runs:
            return self._outbox.of_id(push.id)
        try:
            return await asyncio.wait_for(asyncio.shield(self._runs[push.id]), seconds)
        except TimeoutError:
            return push

    async def forget(self, push: Kept) -> None:
        """The push is as if it had never come.

        Raises:
            sqlite3.Error: the disk is full, or such.
        """
        await self._on_disk(self._outbox.forget, [push.id])

    async def close(self) -> None:
        """What can be handed over soon has been; the rest is when the receiver starts again."""
        if self._keeping:
            await self._keeping
        tasks = list(self._sending.values())
        if tasks:
            await asyncio.wait(tasks, timeout=LAST)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._disk.shutdown()

    async def _on_disk(self, write: Callable[[Any], Any], what: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, write, what)

    async def _keep(self) -> None:
        """All who came while the disk was busy share its next turn."""
        while self._asked:
            pushes, futures = zip(*self._asked, strict=True)
            self._asked = []
            try:
                kept = await self._on_disk(self._outbox.keep, pushes)
            except Exception as error:  # noqa: BLE001  # told to everyone who waits for it
                for future in futures:
                    if not future.done():  # else who asked has gone
                        future.set_exception(error)
                continue
            for push, future in zip(kept, futures, strict=True):
                self.take_up(push)
                if not future.done():
                    future.set_result(push)

    async def _send(self, deployment: UUID) -> None:
        waiting, tries = self._waiting[deployment], 0
        try:
            while waiting:
                try:
                    done = await self._some(deployment, _by_newest(waiting)[:LARGEST])
                    tries = 0
                    self._late.discard(deployment)
                except Exception as error:  # noqa: BLE001  # whatever it is, it is asked for again
                    done = {}
                    if tries >= QUIET:
                        self._late.add(deployment)
                        LOG.warning("pushes wait: %s: %s", type(error).__name__, error)
                    await asyncio.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
                    tries += 1
                waiting[:] = [push for push in waiting if push.id not in done]
                for identity, push in done.items():
                    self._runs.pop(identity).set_result(push)
                if done:
                    self._handed(deployment, None in done.values())
        finally:
            for push in waiting:
                self._runs.pop(push.id).cancel()
            self._late.discard(deployment)
            del self._sending[deployment], self._waiting[deployment]

    async def _some(
        self, deployment: UUID, groups: Sequence[Sequence[Kept]]
    ) -> dict[str, Kept | None]:
        """Those with a run now, by their ids: everyone of a group has that of its first.

        None instead, if their deployment is gone.

        Raises:
            Exception: of Prefect's client, or of the disk; or the server refuses all of them.
        """
        try:
            results = await self._create(deployment, groups)
        except Gone:
            pushes = [push for group in groups for push in group]
            LOG.warning(
                "%d pushes are void: %s is on the server no more", len(pushes), pushes[0].app
            )
            await self._on_disk(self._outbox.forget, [push.id for push in pushes])
            return {push.id: None for push in pushes}
        done = [
            push._replace(run=result, newer=_at(push) < _at(group[0]))
            for group, result in zip(groups, results, strict=True)
            if isinstance(result, UUID)
            for push in group
        ]
        if not done:
            raise ValueError(results[0])
        await self._on_disk(self._outbox.handed, done)
        return {push.id: push for push in done}

    async def _create(self, deployment: UUID, groups: Sequence[Sequence[Kept]]) -> list[UUID | str]:
        """The run of each group, or why there is none.

        Raises:
            Gone: there is no such deployment.
            Exception: of Prefect's client.
        """
        async with self._turn:
            try:
                response = await self._client.request(
                    "POST",
                    "/deployments/{id}/create_flow_run/bulk",  # type: ignore[arg-type]  # unlisted
                    path_params={"id": deployment},
                    json=[_run(group) for group in groups],
                )
            except PrefectHTTPStatusError as error:
                if GONE in str(error):
                    raise Gone from error
                raise
        return [
            UUID(result["flow_run_id"])
            if result["status"] == "CREATED"
            else str(result["error"]).partition("\n")[0][:300]
            for result in response.json()["results"]
        ]


def _by_newest(pushes: Sequence[Kept]) -> list[list[Kept]]:
    """Those whose time is known as one group, newest first; every other one alone.

    Of one moment the last that came is the newest, as on the server.
    """
    dated = sorted((one for one in pushes if one.at is not None), key=_at)[::-1]
    return ([dated] if dated else []) + [[one] for one in pushes if one.at is None]


def _at(push: Kept) -> float:
    return push.at or 0.0


def _run(group: Sequence[Kept]) -> dict[str, Any]:
    """The fields of the first one's run, with a tag that tells how many it stands for."""
    first = group[0]
    of = [f"newest-of-{len(group)}"] if len(group) > 1 else []
    return first.fields | {
        "idempotency_key": first.key,
        "tags": first.fields["tags"] + of,
        "enforce_parameter_schema": False,  # the run says what is wrong with the app
    }
