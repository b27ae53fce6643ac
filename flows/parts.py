"""What runs on one host: the Prefect server, the runner and the webhook receiver.

`nonstop up` starts them as processes of its own, `nonstop up --systemd` as units.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from flows.progress import to_nowhere
from tasks.bluegreen.errors import BadInput, Unavailable
from tasks.bluegreen.units import Frozen

STARTUP = 120.0  # seconds; a first start makes the database, on a busy machine slowly
ANSWER = 30.0  # seconds for the Prefect server to answer; a busy one was seen to need 10
ROLL_BACK = 120.0  # seconds; Prefect gives each run 30 s to go back
SETTINGS = {  # each gives way to what the environment or the profile says
    # A dead run is found by its silence; 30 s is the least that Prefect takes.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # In memory, as by default, a restart leaves a dead run's slot taken for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    "PREFECT_UI_API_URL": "/api",  # of where the UI itself comes from, whatever name that has
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_CLASS": "flows.progress.Line",
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",  # seconds until a line is seen in the UI
}


class Address(NamedTuple):
    """Where a part listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """How processes of this host reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that is written as HOST:PORT.

        Raises:
            BadInput: it is not.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise BadInput(f"{text!r} is not an address like 127.0.0.1:4200.")
        return cls(host.strip("[]"), int(port))

    def ensure_free(self, part: str, option: str) -> None:
        """Nobody listens there.

        Raises:
            Unavailable: somebody does, or this host has no such address.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(self)
            except OSError as error:
                raise Unavailable(
                    f"The {part} cannot listen on {self.host}:{self.port} ({error.strerror}): stop "
                    f"what does (`ss -ltnp` names it), or name another address with {option}."
                ) from error


class Part(Frozen):
    """One process that is kept running."""

    name: str
    title: str
    command: tuple[str, ...]
    stop_limit: float  # seconds it may take to end


class Parts(Frozen):
    """What is to run, and with which settings; `server` is None when PREFECT_API_URL names one."""

    api: str
    file: Path
    notify: str | None = None
    server: Address | None
    webhooks: Address

    @classmethod
    def of(cls, file: Path, server: Address, webhooks: Address, notify: str | None) -> Parts:
        """With a Prefect server of ours, unless Prefect's settings name one."""
        named = PREFECT_API_URL.value()
        return cls(
            api=named or f"{server.url}/api",
            file=file,
            notify=notify,
            server=None if named else server,
            webhooks=webhooks,
        )

    def all(self) -> tuple[Part, ...]:
        """In the order in which they start; they stop the other way round."""
        runner = ["-m", "flows.runner", "--file", self.file.resolve().name]
        runner += ["--notify", self.notify] if self.notify else []
        found = [
            Part(
                name="runner",
                title="deployments of nonstop",
                command=(sys.executable, *runner),
                stop_limit=ROLL_BACK,
            ),
            self._webhook(),
        ]
        if self.server:
            start = ["-m", "prefect", "server", "start", "--host", self.server.host]
            server = Part(
                name="server",
                title="Prefect server of nonstop",
                command=(sys.executable, *start, "--port", str(self.server.port)),
                stop_limit=20,
            )
            found.insert(0, server)
        return tuple(found)

    def _webhook(self) -> Part:
        where = ("--host", self.webhooks.host, "--port", str(self.webhooks.port))
        return Part(
            name="webhook",
            title="webhook receiver of nonstop",
            command=(sys.executable, "-m", "flows.webhook", *where),
            stop_limit=20,
        )

    @property
    def folder(self) -> Path:
        """Where they run: paths in the inventory are seen from its own directory."""
        return self.file.resolve().parent

    def fixed(self) -> dict[str, str]:
        """What they are told by us."""
        return SETTINGS | {"PREFECT_API_URL": self.api, "PYTHONUNBUFFERED": "1"}

    def settings(self) -> dict[str, str]:
        """Prefect's settings for them: ours below those that the operator made."""
        made = get_current_settings().to_environment_variables(exclude_unset=True)
        made |= {name: os.environ[name] for name in SETTINGS if name in os.environ}
        return self.fixed() | made | {"PREFECT_API_URL": self.api}

    def environment(self) -> dict[str, str]:
        """The environment of their processes."""
        return dict(os.environ) | self.settings()


def tell(sentence: str) -> None:
    """One line for whoever watches, if somebody still does."""
    try:
        print(sentence, flush=True)
    except OSError:
        to_nowhere(sys.stdout)


async def answers(url: str, limit: float, stop: asyncio.Event) -> bool:
    """Whether a Prefect server answers at that API address within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not stop.is_set():
        if not await asyncio.to_thread(away, url):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.2)
    return False


def away(url: str) -> Exception | None:
    """Why no Prefect server answers at that API address, asked as Prefect's settings say."""
    once = {PREFECT_API_REQUEST_TIMEOUT: ANSWER, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(once), SyncPrefectClient(url) as client:
        return client.api_healthcheck()
