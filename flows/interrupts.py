"""Signals while a deploy runs: the first one ends it, none cuts the way back."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from prefect.utilities import engine


class Interrupts:
    """Within, the first SIGTERM or SIGINT ends what runs; a second one would cut the way back.

    `ignored` makes them wait from now on, whether one came or not.
    """

    def __init__(self) -> None:
        self.ignored = False
        self._before: dict[int, Any] = {}
        self._ours = self._handle  # one object, which Prefect looks for

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ours)
            # A cancelled run is Cancelled at once, and not Crashed first, only if Prefect finds
            # the handler that it knows when the runner tells of the cancellation.
            if self._before[signal.SIGTERM] is engine._prefect_sigterm_handler:
                engine._prefect_sigterm_handler = self._ours  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if engine._prefect_sigterm_handler is self._ours:
            engine._prefect_sigterm_handler = self._before[signal.SIGTERM]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.ignored:
            return
        self.ignored = True
        handler = self._before[number]
        if callable(handler):
            handler(number, frame)
        elif handler == signal.SIG_DFL:
            raise KeyboardInterrupt
