"""What visitors met, read from the proxy's access log."""

from __future__ import annotations

import json
import threading
from typing import NamedTuple

import requests
from docker.errors import DockerException

from tasks.bluegreen.containers import Engine, engine_words, words
from tasks.bluegreen.errors import EngineHiccup
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


def visitors_attempts(line: str, app: str, servers: frozenset[str], since: float = 0.0) -> Attempts:
    """What one line of the access log says of visitors' requests to `servers` since a Unix time.

    Every upstream attempt counts, also one that nginx repeated elsewhere without the visitor's
    notice. Our own requests and those that a visitor gave up (499) don't.
    """
    if not line.startswith(f'{{"app":"{app}",'):
        return Attempts(0, 0)
    try:
        entry = json.loads(line)
        agent, status, at = str(entry["agent"]), entry["status"], float(entry["at"])
        asked, ended = _list(entry["upstream"]), _list(entry["upstream_status"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):  # cut by the engine's log
        return Attempts(0, 0)
    if agent.startswith(AGENT) or status == 499 or at < since:
        return Attempts(0, 0)
    hits = [status for server, status in zip(asked, ended, strict=False) if server in servers]
    return Attempts(len(hits), sum(1 for status in hits if not status.isdigit() or status >= "500"))


def _list(value: str) -> list[str]:
    """Nginx's list of attempts: `, ` between servers of one group, ` : ` between groups."""
    return [part.strip() for part in value.replace(" : ", ", ").split(",")]


class Visits:
    """Follows the access log in a thread of its own, from some way before the cutover on.

    Args:
        engine: a connection that only this object uses.
        nginx: whose log.
        app: whose lines.
        green: `address:port` of each of green's replicas.
        blue: the same of blue, to compare with.
        since: Unix time of green's start; before it, others may have had green's addresses.
    """

    def __init__(
        self,
        engine: Engine,
        nginx: Nginx,
        app: str,
        green: frozenset[str],
        blue: frozenset[str],
        since: float,
    ) -> None:
        self.app, self.servers, self.before, self.since = app, green, blue, since
        self.green = self.blue = Attempts(0, 0)
        self.deaf = ""
        try:
            with engine_words(f"read the log of {nginx.proxy.container}"):
                self._stream = engine.api.logs(
                    nginx.id, stdout=True, stderr=False, tail=BASELINE, stream=True, follow=True
                )
        except EngineHiccup as error:  # a logging driver that cannot be read
            self._stream, self.deaf = None, error.what
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Visits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()
            self._thread.join(timeout=2)

    def _follow(self) -> None:
        rest = b""
        try:
            for chunk in self._stream or ():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._count(line.decode(errors="replace"))
        except (DockerException, requests.RequestException, OSError, ValueError) as error:
            self.deaf = words(error)  # also when it is closed; nobody asks any more then

    def _count(self, line: str) -> None:
        self.green += visitors_attempts(line, self.app, self.servers, self.since)
        self.blue += visitors_attempts(line, self.app, self.before)
