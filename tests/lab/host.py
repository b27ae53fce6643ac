"""A host that runs `nonstop up`, with an inventory of its own, looked at through Prefect's API."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.inventory import ENTRYPOINT
from flows.names import ENDS
from tests.lab import history
from tests.lab.command import BIN
from tests.lab.shop import Shop, free_port

STARTUP = 120.0


class Host:
    """`nonstop up` while it is entered; its inventory has the shop, and what `describe` is given.

    Args:
        api: address of the API of a server that runs already; None: `nonstop up` starts one.
        options: of the command.
    """

    def __init__(
        self, shop: Shop, folder: Path, *, api: str | None = None, options: tuple[str, ...] = ()
    ) -> None:
        self.shop, self.folder = shop, folder
        self.port = free_port()
        self.url = api or f"http://127.0.0.1:{self.port}/api"
        webhooks = f"127.0.0.1:{free_port()}"
        self.receiver = f"http://{webhooks}"
        self.options = (*options, "--webhooks", webhooks)
        self.options += () if api else ("--server", f"127.0.0.1:{self.port}")
        self.environment = os.environ | {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": api or "",
        }
        self.log = folder / "log"
        self.describe()

    def describe(self, *entries: dict[str, Any], **changes: Any) -> None:
        """The inventory has the shop with these changes, its rollback, and these entries."""
        app = self.shop.described(**changes)
        deployments = [
            {"name": self.shop.name, "entrypoint": ENTRYPOINT, "parameters": {"app": app}},
            {
                "name": self.shop.name,
                "entrypoint": "flows.deploy.rollback",
                "parameters": {"app": self.shop.name},
            },
            *entries,
        ]
        text = yaml.safe_dump({"deployments": deployments})
        (self.folder / "prefect.yaml").write_text(text)

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Another `nonstop up` as this one."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [BIN / "nonstop", "up", *self.options, *options],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def __enter__(self) -> Host:
        said = len(self.said()) if self.log.exists() else 0
        self.process = self.start()
        self.hears(" runs deploy/", after=said)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            finally:
                self.process.kill()
        if kind:
            print(self.log.read_text()[-6000:])

    def said(self) -> str:
        """All that `nonstop up` has said."""
        return self.log.read_text()

    def hears(self, words: str, limit: float = STARTUP, after: int = 0) -> None:
        """It says so, after so many characters."""
        self.until(lambda: words in self.said()[after:], limit, words)

    def until(self, holds: Callable[[], Any], limit: float, what: str) -> None:
        """It holds within that many seconds, while `nonstop up` runs."""

        def answered() -> Any:
            try:
                return holds()
            except httpx.TransportError:
                return False  # the server is being started again

        deadline = time.monotonic() + limit
        while not answered():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not within {limit:g} s: {what}\n{self.said()}"
            time.sleep(0.2)

    def ask(self, flow: str, name: str = "", at: float | None = None, **parameters: Any) -> str:
        """A run of that deployment, as the UI asks for one, at that Unix time or now; its id."""
        found = self.get(f"deployments/name/{flow}/{name or self.shop.name}")
        state: dict[str, Any] = {"type": "SCHEDULED"}
        if at is not None:
            when = datetime.fromtimestamp(at, UTC).isoformat()
            state["state_details"] = {"scheduled_time": when}
        body = {"parameters": parameters, "state": state}
        return str(self.post(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def cancel(self, run: str) -> None:
        """As the button in the UI does."""
        self.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def state(self, run: str) -> str:
        """The name of a run's state."""
        return str(self.get(f"flow_runs/{run}")["state_name"])

    def ended(self, run: str, limit: float = 120) -> str:
        """The name of the state in which a run has ended."""
        self.until(lambda: self.state(run) in ENDS, limit, f"the end of {run}")
        return self.state(run)

    def get(self, path: str) -> Any:
        """What the API answers."""
        return history.request("GET", f"{self.url}/{path}").raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        """What the API answers to this."""
        return history.request("POST", f"{self.url}/{path}", body).raise_for_status().json()

    def find(self, path: str, **body: Any) -> Any:
        """What the API answers to a filter."""
        return self.post(f"{path}/filter", body)

    def children(self, pid: int | None = None) -> dict[int, str]:
        """Process ids and commands of everything below a process, without the dead."""
        found: dict[int, str] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
                command = (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if int(fields[1]) == (pid or self.process.pid) and fields[0] != "Z":
                found[int(path.parent.name)] = command
                found |= self.children(int(path.parent.name))
        return found

    def child(self, words: str) -> int:
        """The process id of the one below us whose command has these words."""
        (found,) = [pid for pid, command in self.children().items() if words in command]
        return found
