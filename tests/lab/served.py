"""A runner in a process of its own that serves the flows, as on a host of an operator's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL

from tests.lab import history

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from prefect import serve
from prefect.deployments.runner import RunnerDeployment
name, *entrypoints = sys.argv[1:]
serve(*(RunnerDeployment.from_entrypoint(entrypoint, name=name) for entrypoint in entrypoints))
"""
PATIENCE = 120.0  # seconds for whatever is waited for


class Served:
    """Deployments of the flows and their runner, while entered.

    Args:
        folder: for the runner's log.
        module: where the flows are.
        environment: more variables for the runner and its runs.
    """

    def __init__(
        self, folder: Path, module: str = "flows.deploy", environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.log = f"{module}-{os.getpid()}", folder / "runner.log"
        self.module, self.environment = module, environment or {}

    def __enter__(self) -> Served:
        changes = {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PYTHONPATH": str(ROOT),
        }
        entrypoints = [f"{self.module}.{flow}" for flow in ("deploy", "rollback")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, self.name, *entrypoints],
                cwd=self.log.parent,
                env=os.environ | changes | self.environment,
                stdout=log,
                stderr=log,
            )
        self.ids = {flow: self._id(flow) for flow in ("deploy", "rollback")}
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=PATIENCE)

    def start(self, flow: str, **parameters: Any) -> str:
        """A run as the UI starts it; its id."""
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        path = f"/deployments/{self.ids[flow]}/create_flow_run"
        return str(history.ask("POST", path, body)["id"])

    def _id(self, flow: str) -> str:
        url = f"{PREFECT_API_URL.value()}/deployments/name/{flow}/{self.name}"
        deadline = time.monotonic() + PATIENCE
        while not (answer := history.request("GET", url)).is_success:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        return str(answer.json()["id"])


def until(run: str, *states: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """The run once it is in one of these states."""
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, Any] = history.ask("GET", f"/flow_runs/{run}")
        if found["state_name"] in states:
            return found
        assert found["state_type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), found
        assert time.monotonic() < deadline, found["state"]
        time.sleep(0.2)


def cancel(run: str) -> None:
    """What the button in the UI does."""
    state = {"state": {"type": "CANCELLING"}}
    history.ask("POST", f"/flow_runs/{run}/set_state", state)


def resume(run: str, **answer: Any) -> dict[str, Any]:
    """What the form in the UI does; what the server says to it."""
    body = {"run_input": answer} if answer else {}
    said: dict[str, Any] = history.ask("POST", f"/flow_runs/{run}/resume", body)
    return said
