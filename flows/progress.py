"""What a run says while somebody waits at a terminal: its own sentences, and a clock."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

ERR = Console(stderr=True, highlight=False)
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
