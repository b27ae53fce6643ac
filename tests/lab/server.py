"""Prefect servers: one of the tests' own, and the demo's, whose UI stays until `make clean`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    temporary_settings,
)

from tests.lab.engine import tell
from tests.lab.plain import PLAIN

HOME = Path(__file__).parents[2] / ".demo"
PID = HOME / "server.pid"
ADDRESS = HOME / "server.address"
STARTUP = 120.0


@contextmanager
def prefect_of_its_own() -> Iterator[None]:
    """A Prefect server with a database of its own, for as long as this is entered."""
    from prefect.testing.utilities import prefect_test_harness  # all of the server: seconds

    with (
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_SERVER_ANALYTICS_ENABLED: False}
        ),
        prefect_test_harness(server_startup_timeout=int(STARTUP)),
    ):
        yield


class Server:
    """A Prefect server as a process, with a home of its own.

    Args:
        home: its directory: database, log.
        port: of 127.0.0.1.
    """

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.address = home, f"http://127.0.0.1:{port}"
        self.database = home / "prefect.db"
        self.port = port

    def start(self) -> int:
        """Gives the process's id, which is its group's too, once the server answers.

        Raises:
            SystemExit: it does not start, with the place of its log.
        """
        self.home.mkdir(exist_ok=True)
        with (self.home / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=os.environ
                | {
                    "PREFECT_HOME": str(self.home),
                    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                    "PREFECT_UI_API_URL": f"{self.address}/api",
                    "PREFECT_API_URL": "",
                },
            )
        deadline = time.monotonic() + STARTUP
        while not _answers(self.address):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"The Prefect server did not start; its log is {self.home}/server.log.")
            time.sleep(0.2)
        return process.pid


def ensure_server(port: int) -> str:
    """The address of the demo's server, started on `port` unless one runs already.

    Raises:
        SystemExit: it does not start, with the place of its log.
    """
    if ADDRESS.exists() and _answers(ADDRESS.read_text()):
        return ADDRESS.read_text()
    tell(f"starting a Prefect server; its log is {HOME.name}/server.log")
    server = Server(HOME, port)
    PID.write_text(str(server.start()))
    ADDRESS.write_text(server.address)
    return server.address


def stop_server() -> None:
    """The demo's server has ended, and its history is gone."""
    if PID.exists():
        pid = int(PID.read_text())
        command = Path(f"/proc/{pid}/cmdline")
        if command.exists() and b"prefect" in command.read_bytes():
            os.killpg(pid, 15)
            while command.exists() and command.read_bytes():
                time.sleep(0.1)
    shutil.rmtree(HOME, ignore_errors=True)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/api/health", timeout=5, verify=PLAIN).is_success
    except httpx.HTTPError:
        return False
