"""What a run says while somebody waits at a terminal: its own sentences, and a clock."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Stderr:
    """Standard error, which may lose its reader: a deploy goes on, or back, all the same.

    From the first line that cannot be written, because the terminal or the pipe's other end is
    gone or the disk is full, everything goes nowhere.
    """

    def write(self, text: str) -> int:
        """The number of characters that are dealt with."""
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """What was written is there."""
        with self._or_nowhere():
            self._stream.flush()

    @contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            to_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> TextIO:
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)  # below a clock
        return stream


def to_nowhere(stream: TextIO) -> None:
    """What is still to be written there, and all that comes, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


ERR = Console(file=cast(IO[str], Stderr()), highlight=False)
OURS = Path(__file__).parents[1]


class Told(logging.Handler):
    """Prints what flows and tasks say; Prefect's own lines stay in its history."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line: time, step, sentence."""
        path = Path(record.pathname)
        if path.parent not in (OURS / "flows", OURS / "tasks"):
            return
        clock = self.formatter.formatTime(record, "%H:%M:%S") if self.formatter else ""
        step = str(getattr(record, "task_run_name", "")).partition(" ")[0]
        style = "yellow" if record.levelno >= logging.WARNING else ""
        ERR.print(
            f"{clock} {step or 'nonstop':14} {record.getMessage()}",
            style=style,
            markup=False,
            soft_wrap=True,
        )


class Line(logging.StreamHandler[TextIO]):
    """Prefect's lines on a stream that may lose its reader.

    Prefect's own handler ends the process then: a deploy would die with the runner that reads it.
    """

    def __init__(self, stream: TextIO, **_: Any) -> None:
        super().__init__(stream)

    def format(self, record: logging.LogRecord) -> str:
        """A line; without the traceback of what Prefect's server tries again by itself."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if "database is locked" not in str(error):
            return super().format(record)
        words = f"{record.getMessage()}: SQLite takes one writer at a time, and is asked again"
        calm = {"msg": words, "args": None, "exc_info": None, "exc_text": None}
        return super().format(logging.makeLogRecord(record.__dict__ | calm))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """The line is lost; it is in Prefect's history all the same."""


@contextmanager
def progress(app: str) -> Iterator[None]:
    """Within, sentences of a run are printed as they come, above a clock that runs."""
    handler = Told()
    handler.setFormatter(logging.Formatter())
    loggers = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("flow", "task")]
    for logger in loggers:
        logger.addHandler(handler)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=ERR, transient=True) as clock:
            clock.add_task(app)
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
