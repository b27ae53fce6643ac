"""Runs that are asked for while the server is busy, asked for together once it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient

LARGEST = 50  # runs in one request; the server takes at most 100
MOST = 300  # runs of one deployment that wait to be asked for
AGAIN = (0.01, 0.1, 0.2, 0.3)  # seconds before further tries; SQLite says at once that it is locked


class Busy(Exception):
    """More runs are asked for than the server can take."""


class NotCreated(ValueError):
    """The server refuses to create a run, in its words."""


class Created(NamedTuple):
    """A run that is on the server."""

    id: UUID
    newer: bool
    """Whether it is that of a newer push than the one it was asked for."""


class Asked(NamedTuple):
    """A run that somebody waits for."""

    run: dict[str, Any]
    at: float | None
    """When it was pushed, in seconds since 1970; None: nobody knows."""
    created: asyncio.Future[Created]


class Batches:
    """Creates runs; one request is under way at a time.

    Of 20 at a time a server on SQLite refuses half at once, as it is locked, and with 30 it stands
    still for a minute; one after the other they take half the time. Of the pushes that wait for
    one request only the newest of each deployment gets a run, which is tagged with their number.

    Args:
        client: of the server.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._waiting: dict[UUID, list[Asked]] = {}
        self._sending: dict[UUID, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    @property
    def idle(self) -> bool:
        """Nobody waits for a run."""
        return not self._sending

    async def create(self, deployment: UUID, at: float | None, **run: Any) -> Created:
        """A run with these fields is on the server, or was, under its idempotency key.

        Or that of a newer push, which was asked for meanwhile.

        Args:
            deployment: whose run.
            at: when it was pushed, in seconds since 1970; None: nobody knows, so none overtakes it.
            run: fields of the run, `tags` and `idempotency_key` among them.

        Raises:
            Busy: too many wait for theirs.
            NotCreated: the server refuses this one.
            Exception: of Prefect's client, when its server does not answer.
        """
        waiting = self._waiting.setdefault(deployment, [])
        if len(waiting) >= MOST:
            raise Busy
        created: asyncio.Future[Created] = asyncio.get_running_loop().create_future()
        waiting.append(Asked(run, at, created))
        if deployment not in self._sending:
            self._sending[deployment] = asyncio.create_task(self._send(deployment))
        return await created

    async def _send(self, deployment: UUID) -> None:
        waiting = self._waiting[deployment]
        try:
            while waiting:
                groups = _by_newest(waiting)
                waiting.clear()
                for first in range(0, len(groups), LARGEST):
                    await self._create(deployment, groups[first : first + LARGEST])
        finally:
            del self._sending[deployment], self._waiting[deployment]

    async def _create(self, deployment: UUID, groups: Sequence[Sequence[Asked]]) -> None:
        """Everyone of a group has the run of its first, or why there is none."""
        results: Sequence[UUID | Exception]
        try:
            results = await self._try(deployment, [_run(group) for group in groups])
        except Exception as error:  # noqa: BLE001  # told to everyone who waits for it
            results = [error] * len(groups)
        telling = asyncio.create_task(_tell(groups, results))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _try(self, deployment: UUID, runs: list[dict[str, Any]]) -> list[UUID | Exception]:
        """The id of each, after further tries for those that the server did not create."""
        results = await self._ask(deployment, runs)
        for pause in AGAIN:
            left = [index for index, one in enumerate(results) if isinstance(one, NotCreated)]
            if not left:
                break
            await asyncio.sleep(pause)
            again = await self._ask(deployment, [runs[index] for index in left])
            for index, result in zip(left, again, strict=True):
                results[index] = result
        return results

    async def _ask(self, deployment: UUID, runs: list[dict[str, Any]]) -> list[UUID | Exception]:
        async with self._turn:
            response = await self._client.request(
                "POST",
                "/deployments/{id}/create_flow_run/bulk",  # type: ignore[arg-type]  # not listed
                path_params={"id": deployment},
                json=runs,
            )
        return [
            UUID(result["flow_run_id"])
            if result["status"] == "CREATED"
            else NotCreated(str(result["error"]).partition("\n")[0][:300])
            for result in response.json()["results"]
        ]


async def _tell(groups: Sequence[Sequence[Asked]], results: Sequence[UUID | Exception]) -> None:
    """One after the other, so that the next request goes out, and is heard, between answers."""
    for group, result in zip(groups, results, strict=True):
        for asked in group:
            if not asked.created.done():  # else who asked has gone
                if isinstance(result, UUID):
                    asked.created.set_result(Created(result, _at(asked) < _at(group[0])))
                else:
                    asked.created.set_exception(result)
                await asyncio.sleep(0)


def _by_newest(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Those whose time is known as one group, newest first; every other one alone."""
    dated = sorted((one for one in asked if one.at is not None), key=_at, reverse=True)
    return [[one] for one in asked if one.at is None] + ([dated] if dated else [])


def _at(asked: Asked) -> float:
    return asked.at or 0.0


def _run(group: Sequence[Asked]) -> dict[str, Any]:
    """The fields of the first one's run, with a tag that tells how many it stands for."""
    run = group[0].run
    pushes = {one.run["idempotency_key"] or number for number, one in enumerate(group)}
    if len(pushes) == 1:
        return run
    return run | {"tags": [*run["tags"], f"newest-of-{len(pushes)}"]}
