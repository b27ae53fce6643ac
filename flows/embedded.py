"""Prefect's embedded server, which lives for as long as the command that needs it."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from prefect.server.api.server import SubprocessASGIServer

KEYS = (signal.SIGINT, signal.SIGHUP)  # what a terminal sends to all of its foreground processes


class Embedded(SubprocessASGIServer):
    """The one that Prefect's clients find once this was made: it outlives Ctrl-C.

    Else each event of the way back waits 7 s for a server that is gone, and the history lacks the
    run's end.
    """

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, KEYS)  # which a child inherits
        try:
            return super()._run_uvicorn_command()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
