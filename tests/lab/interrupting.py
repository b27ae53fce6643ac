"""A signal at a chosen line of the main thread."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """What SIGTERM raises outside a run: Prefect sends itself the signal again in the end."""


@dataclass
class Interrupt:
    """Where and when (monotonic, seconds) the signal came; empty: not yet."""

    place: str = ""
    came: float = 0.0


@contextmanager
def interrupted(
    number: signal.Signals, begin: str, here: Callable[[FrameType], bool], line: int
) -> Iterator[Interrupt]:
    """Within, the signal comes at a line.

    Args:
        number: SIGINT or SIGTERM.
        begin: name of the function before whose call nothing is looked at.
        here: whether lines of a frame count.
        line: the signal comes at this one of those that are run; 1 is the first.
    """
    interrupt = Interrupt()
    seen = 0

    def wait(frame: FrameType, *_: Any) -> Any:
        if frame.f_code.co_name == begin:
            sys.settrace(count)
            return count(frame)
        return None

    def count(frame: FrameType, *_: Any) -> Any:
        nonlocal seen
        seen += here(frame)
        if seen >= line:
            sys.settrace(None)
            interrupt.place = f"{where(frame)}:{frame.f_lineno}"
            interrupt.came = time.monotonic()
            os.kill(os.getpid(), number)
            return None
        return count

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    sys.settrace(wait)
    try:
        yield interrupt
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGTERM, before)


def where(frame: FrameType) -> str:
    """Like `asyncio/events.py _run`."""
    folder_and_file = "/".join(frame.f_code.co_filename.split("/")[-2:])
    return f"{folder_and_file} {frame.f_code.co_name}"
