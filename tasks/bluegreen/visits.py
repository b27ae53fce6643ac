"""What visitors met, read from the proxy's access log."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import NamedTuple

from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import AGENT

BASELINE = 5000  # lines of the log before the cutover that blue is judged by


class Attempts(NamedTuple):
    """How often replicas were asked, and how often that went wrong."""

    total: int
    failed: int

    @property
    def share(self) -> float:
        """Failed share, 0 to 1."""
        return self.failed / self.total if self.total else 0.0

    def __add__(self, other: object) -> Attempts:
        """The sum of both."""
        if not isinstance(other, Attempts):
            return NotImplemented
        return Attempts(self.total + other.total, self.failed + other.failed)


def visitors_attempts(line: str, app: str, servers: frozenset[str]) -> Attempts:
    """What one line of the access log says of visitors' requests to `servers`.

    Every upstream attempt counts, also one that nginx repeated elsewhere without the visitor's
    notice. Our own requests and those that a visitor gave up (499) don't.
    """
    if not line.startswith(f'{{"app":"{app}",'):
        return Attempts(0, 0)
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:  # a line cut by the engine's log
        return Attempts(0, 0)
    if str(entry["agent"]).startswith(AGENT) or entry["status"] == 499:
        return Attempts(0, 0)
    asked = [part.strip() for part in str(entry["upstream"]).replace(" : ", ", ").split(",")]
    ended = [part.strip() for part in str(entry["upstream_status"]).replace(" : ", ", ").split(",")]
    hits = [status for server, status in zip(asked, ended, strict=False) if server in servers]
    return Attempts(len(hits), sum(1 for status in hits if not status.isdigit() or status >= "500"))


class Visits:
    """Follows the access log from now on, in a thread of its own.

    Args:
        engine: a connection that only this object uses.
        nginx: whose log.
        app: whose lines.
        green: `address:port` of each of green's replicas.
        blue: the same of blue, to compare with.
    """

    def __init__(
        self, engine: Engine, nginx: Nginx, app: str, green: frozenset[str], blue: frozenset[str]
    ) -> None:
        self.app, self.servers = app, green
        self.green = Attempts(0, 0)
        with engine_words(f"read the log of {nginx.proxy.container}"):
            before = engine.api.logs(nginx.id, stdout=True, stderr=False, tail=BASELINE)
            self._stream = engine.api.logs(
                nginx.id, stdout=True, stderr=False, tail=0, stream=True, follow=True
            )
        lines = before.decode(errors="replace").splitlines()
        self.blue = sum((visitors_attempts(line, app, blue) for line in lines), Attempts(0, 0))
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Visits:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._thread.join(timeout=2)

    def _follow(self) -> None:
        rest = b""
        for chunk in self._stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                self.green += visitors_attempts(text, self.app, self.servers)
