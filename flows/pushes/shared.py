"""What several want at one moment is done once, and who gives up stops nothing.

A request of httpx that is cancelled may keep its place among the 16 connections of a client for
ever (httpcore issue 1093); once all are lost, the client asks nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Who comes while it is being done gets what comes of it; it goes on if nobody waits for it.

    Args:
        do: what is done.
    """

    def __init__(self, do: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._do = do
        self._task: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What comes of it."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._do())
            self._task.add_done_callback(_heard)
        return await asyncio.shield(self._task)

    def cancel(self) -> None:
        """It does not go on."""
        if self._task:
            self._task.cancel()


async def within(seconds: float, asking: Coroutine[Any, Any, T]) -> T:
    """What is answered in so many seconds; later, the answer is thrown away.

    Raises:
        TimeoutError: it was not.
    """
    task = asyncio.create_task(asking)
    task.add_done_callback(_heard)
    return await asyncio.wait_for(asyncio.shield(task), seconds)


def _heard(task: asyncio.Task[Any]) -> None:
    """Of its failure, whoever still waits for it."""
    if not task.cancelled():
        task.exception()
