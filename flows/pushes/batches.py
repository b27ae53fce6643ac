"""Runs that are asked for while the server is busy, asked for together once it is not."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient

LARGEST = 50  # runs in one request; the server takes at most 100
MOST = 300  # runs of one deployment that wait to be asked for
TRIES = 4
AGAIN = 0.1  # seconds before the next try; SQLite says that it is locked without waiting


class Busy(Exception):
    """More runs are asked for than the server can take."""


class NotCreated(ValueError):
    """The server refuses to create a run, in its words."""


class Batches:
    """Creates runs; one request for each deployment is under way at a time.

    On SQLite that is several times as fast as one request for each run.

    Args:
        client: of the server.
    """

    def __init__(self, client: PrefectClient) -> None:
        self._client = client
        self._waiting: dict[UUID, list[tuple[dict[str, Any], asyncio.Future[UUID]]]] = {}
        self._sending: dict[UUID, asyncio.Task[None]] = {}

    @property
    def idle(self) -> bool:
        """Nobody waits for a run."""
        return not self._sending

    async def create(self, deployment: UUID, **run: Any) -> UUID:
        """A run with these fields is on the server, or was, under its idempotency key.

        Raises:
            Busy: too many wait for theirs.
            NotCreated: the server refuses this one.
            Exception: of Prefect's client, when its server does not answer.
        """
        waiting = self._waiting.setdefault(deployment, [])
        if len(waiting) >= MOST:
            raise Busy
        created: asyncio.Future[UUID] = asyncio.get_running_loop().create_future()
        waiting.append((run, created))
        if deployment not in self._sending:
            self._sending[deployment] = asyncio.create_task(self._send(deployment))
        return await created

    async def _send(self, deployment: UUID) -> None:
        waiting = self._waiting[deployment]
        try:
            while waiting:
                batch = waiting[:LARGEST]
                del waiting[:LARGEST]
                try:
                    results = await self._try(deployment, [run for run, _ in batch])
                except Exception as error:  # noqa: BLE001  # told to everyone who waits for it
                    results = [error] * len(batch)
                for (_, created), result in zip(batch, results, strict=True):
                    if created.done():  # who asked has gone
                        continue
                    if isinstance(result, UUID):
                        created.set_result(result)
                    else:
                        created.set_exception(result)
        finally:
            del self._sending[deployment], self._waiting[deployment]

    async def _try(self, deployment: UUID, runs: list[dict[str, Any]]) -> list[UUID | Exception]:
        """The id of each, after further tries for those that the server did not create."""
        results = await self._ask(deployment, runs)
        for number in range(1, TRIES):
            left = [index for index, one in enumerate(results) if isinstance(one, NotCreated)]
            if not left:
                break
            await asyncio.sleep(AGAIN * number)
            again = await self._ask(deployment, [runs[index] for index in left])
            for index, result in zip(left, again, strict=True):
                results[index] = result
        return results

    async def _ask(self, deployment: UUID, runs: list[dict[str, Any]]) -> list[UUID | Exception]:
        response = await self._client.request(
            "POST",
            "/deployments/{id}/create_flow_run/bulk",  # type: ignore[arg-type]  # not listed there
            path_params={"id": deployment},
            json=runs,
        )
        return [
            UUID(result["flow_run_id"])
            if result["status"] == "CREATED"
            else NotCreated(str(result["error"]).partition("\n")[0][:300])
            for result in response.json()["results"]
        ]
