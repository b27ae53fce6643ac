"""What visitors met, read from the proxy's access log."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from contextlib import suppress
from typing import NamedTuple

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup
from tasks.bluegreen.log import Log, moment
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import AGENT

# So many entries of the log are read, and more only where that was not enough: a log may be large,
# and beside a busy site an app's lines are few.
DEPTHS = (300, 3_000, 30_000, 300_000)
ENOUGH = 1_000  # requests of visitors to blue that green is compared with
BACK = 600.0  # seconds before green's start from which on they count
READ = 5.0  # seconds after which no more of them are looked for
LOOK = 0.5  # seconds between two looks at what was logged meanwhile
END = 10.0  # seconds until the last look has to be done
SHOWN = 5  # failing requests that are shown
LONG = re.compile(r"[^/]{20,}")


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


def request_of(line: str) -> str:
    """What a visitor asked for and what came of it, of a line that counts.

    Without the query, and without what is long in the path: it may be a token.
    """
    entry = json.loads(line)
    path = LONG.sub("...", str(entry.get("path")))
    shown = path if path.isprintable() else ascii(path)
    return f"{entry.get('method')} {shown}: {entry['upstream_status']} from {entry['upstream']}"


def _list(value: str) -> list[str]:
    """Nginx's list of attempts: `, ` between servers of one group, ` : ` between groups."""
    return [part.strip() for part in value.replace(" : ", ", ").split(",")]


class Side(NamedTuple):
    """Whose requests count: `address:port` of each replica, theirs alone since a Unix time."""

    servers: frozenset[str]
    since: float


class Reading(NamedTuple):
    """What lines of the log say."""

    lines: int
    first: bytes
    last: bytes
    found: bool  # whether the line was there after which it was to begin
    green: Attempts
    blue: Attempts


class _Left(Exception):
    """Nobody asks any more."""


class Visits:
    """Reads the access log in a thread of its own, from some way before the cutover on.

    Where the log is out of reach for a while, it is read on from there later: no line is counted
    twice, and what is missing at the end is said in `deaf`.

    Args:
        engine: a connection that only this object uses.
        nginx: whose log.
        app: whose lines.
        green: since its start; before it, others may have had its addresses.
        blue: to compare with.
    """

    def __init__(self, engine: Engine, nginx: Nginx, app: str, green: Side, blue: Side) -> None:
        self.app, self._of_green = app, green
        self._of_blue = Side(blue.servers, max(blue.since, green.since - BACK))
        self.green = self.blue = Attempts(0, 0)
        self.failing: list[str] = []  # the first requests in which green failed, each kind once
        self.deaf = ""  # why not all was heard
        self._log = Log(engine, nginx.seen)
        self._ours = f'{{"app":"{app}",'.encode()
        self._place: bytes | None = None  # the last line that counted; empty: there was none yet
        self._lost = ""
        self._over, self._left = threading.Event(), threading.Event()
        self._complete = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Visits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._over.set()
        self._thread.join(timeout=2)

    def up_to_now(self) -> None:
        """All that nginx has logged until now is counted, or `deaf` says why not."""
        self._over.set()
        self._thread.join(timeout=END)
        if not self._complete:
            self.deaf = self.deaf or f"the log of {self._log.name} was not read in {END:g} s"

    def _listen(self) -> None:
        with suppress(_Left):
            last = False
            while not (last or self._left.is_set()):
                last = self._over.is_set()
                try:
                    if self._place is None:
                        self._look_back()
                    self._look(self._place or b"")
                    self.deaf = self._lost
                except EngineHiccup as error:  # perhaps a logging driver that cannot be read
                    self.deaf = error.what
                self._over.wait(LOOK)
            self._complete = True

    def _look_back(self) -> None:
        """Green's lines so far, enough of blue's, and the place from which the log is read on.

        Green's count only with blue's beside them: else every failure is green's fault.
        """
        ends = time.monotonic() + READ
        newest = reading = self._read(DEPTHS[0])
        green, blue = newest.green, newest.blue
        for entries in DEPTHS[1:]:
            enough = blue.total >= ENOUGH or not self._of_blue.servers
            wanted = self._of_green.since if enough else self._of_blue.since
            if moment(reading.first) <= wanted or time.monotonic() > ends:
                break
            before = reading.lines
            with suppress(EngineHiccup):  # an old entry that the engine cannot read
                reading = self._read(entries, up_to=newest.last, ends=ends)
                green, blue = max(green, reading.green), max(blue, reading.blue)
            if reading.lines == before:
                break
        self.blue, self.green, self._place = blue, green, newest.last

    def _look(self, place: bytes) -> None:
        """What was logged after that line counts.

        With a time, engines need not unpack what was rotated away and compressed. Some then leave
        all of that out (20.10 with `local`), so that in the end they are asked without.
        """
        since = moment(place)
        tries = [(entries, since) for entries in DEPTHS[:2]]
        tries += [(entries, 0.0) for entries in DEPTHS[1:]]
        for entries, asked in tries if place else tries[-1:]:
            reading = self._read(entries, asked, after=place)
            if reading.found:
                break
        else:
            self._lost = f"lines of the log of {self._log.name} were gone before they were read"
            reading = self._read(DEPTHS[-1], since)
        self.blue += reading.blue
        self.green += reading.green
        self._place = reading.last or place

    def _read(
        self,
        entries: int,
        since: float = 0.0,
        *,
        after: bytes = b"",
        up_to: bytes = b"",
        ends: float = math.inf,
    ) -> Reading:
        """Counts the lines after that one and up to that one, until its time (monotonic) ends.

        Raises:
            EngineHiccup: the log cannot be read.
            _Left: nobody asks any more.
        """
        lines, first, last, found = 0, b"", b"", not after
        green = blue = Attempts(0, 0)
        for line in self._log.lines(entries, since):
            if self._left.is_set():
                raise _Left
            if time.monotonic() > ends:
                break
            if found:
                lines, first, last = lines + 1, first or line, line
                text = line.partition(b" ")[2]
                if text.startswith(self._ours):
                    said = text.decode(errors="replace")
                    met = visitors_attempts(said, self.app, *self._of_green)
                    green += met
                    if met.failed and len(self.failing) < SHOWN:
                        self.failing = list(dict.fromkeys([*self.failing, request_of(said)]))
                    blue += visitors_attempts(said, self.app, *self._of_blue)
            found = found or line == after
            if up_to and line == up_to:
                break
        return Reading(lines, first, last, found, green, blue)
