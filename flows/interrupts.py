"""Signals while a deploy runs: the first one ends it, none cuts the way back."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from prefect.utilities import engine

AGAIN = 0.05  # seconds


class Interrupts:
    """Within, the first SIGTERM, SIGINT or SIGHUP ends what runs; a second would cut the way back.

    `ignored` makes them wait from now on, whether one came or not. What a handler raises while
    Python clears objects up is dropped by Python: then the signal comes once more. So it does where
    something would be left behind that others wait for: a lock that was just taken, a thread.
    """

    def __init__(self) -> None:
        self.ignored = False
        self._before: dict[int, Any] = {}
        self._ours = self._handle  # one object, which Prefect looks for
        self._number = 0
        self.raised: BaseException | None = None  # what the first one has raised
        self._hook = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if (before := signal.getsignal(number)) != signal.SIG_IGN:  # as nohup has it
                    self._before[number] = before
                    signal.signal(number, self._ours)
            sys.unraisablehook = self._dropped
            # A cancelled run is Cancelled at once, and not Crashed first, only if Prefect finds
            # the handler that it knows when the runner tells of the cancellation.
            if self._before.get(signal.SIGTERM) is engine._prefect_sigterm_handler:
                engine._prefect_sigterm_handler = self._ours  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook
        self.raised = None  # it holds on to all that was at work
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if engine._prefect_sigterm_handler is self._ours:
            engine._prefect_sigterm_handler = self._before[signal.SIGTERM]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.ignored:
            return
        self._number = number
        if half_done(frame):
            self._come_again()
            return
        self.ignored = True
        handler = self._before[number]
        try:
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                raise KeyboardInterrupt
        except BaseException as error:
            self.raised = error
            raise

    def _dropped(self, what: sys.UnraisableHookArgs) -> None:
        if self.raised is None or what.exc_value is not self.raised:
            self._hook(what)
            return
        self.ignored = False
        self._come_again()

    def _come_again(self) -> None:
        main = threading.main_thread().ident
        threading.Timer(AGAIN, signal.pthread_kill, (main, self._number)).start()


def half_done(frame: FrameType | None) -> bool:
    """Whether a context is being entered or left, or a thread started."""
    if frame is not None and frame.f_code.co_name in ("__enter__", "__exit__"):
        return True
    while frame is not None and frame.f_code is not threading.Thread.start.__code__:
        frame = frame.f_back
    return frame is not None
