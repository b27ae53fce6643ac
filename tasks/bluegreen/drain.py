"""The drain: how the requests of servers that nginx no longer offers come to their end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from tasks.bluegreen.model import Drained
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.scripts import LEAVING

GREEN_DRAIN = 20.0  # seconds for requests that a green which failed is still answering; blue waits
GREEN_GONE = 25.0  # seconds until it is stopped, too: Prefect gives a run 30 to go back
TELL = 5.0  # seconds between two lines of progress
DOUBT = 2.0  # seconds by which a worker may have started later than /proc says
BODY = re.compile(r"(?<!proxy_temp)/\d{10} \(deleted\)$", re.MULTILINE)  # a temporary file's name
HEADER_TIMEOUT = 61.0  # seconds: nginx's default client_header_timeout, and a moment


def drain(
    nginx: Nginx,
    servers: frozenset[str],
    limit: float,
    made: float,
    say: Callable[[str], None],
) -> Drained:
    """Nobody sends requests to these servers any more, or the limit has passed.

    A worker that stopped accepting can still ask an upstream that it has no connection to: it
    may be reading a long upload, or hold a connection that a browser opened ahead. So its end
    is waited for. Where it also serves visitors of other sites, who may stay for hours, it is
    enough that the servers had no connection for as long as such a request takes to come, and
    that no upload is on its way. Which app's reload made it leave does not matter.

    Args:
        nginx: the proxy.
        servers: `address:port` of each replica.
        limit: seconds.
        made: time at which the first of them was made (Unix, seconds): a worker that started
            before cannot know any of them.
        say: tells progress.
    """
    began = asked = time.monotonic()
    told = 0.0
    while True:
        old = _leaving(nginx)
        know = [started for _, started in old if started >= made - DOUBT]
        left = _connections(nginx, servers) if old else 0
        now = time.monotonic()
        waited = now - began
        if left:
            asked = now
        over = not know or (now - asked > HEADER_TIMEOUT and not _receiving(nginx))
        if (over and not left) or waited > limit:
            return Drained(seconds=round(waited, 3), left=left)
        if waited - told >= TELL:
            told = waited
            say(
                f"draining for {waited:.0f} s of at most {limit:.0f} s: {left} connections, "
                f"{len(know)} old workers"
            )
        time.sleep(min(0.1 + waited / 20, 1.0))


def _leaving(nginx: Nginx) -> list[tuple[str, int]]:
    """Workers of earlier generations: their users' ids, and when they started (Unix, seconds)."""
    lines = map(str.split, nginx.run(LEAVING, {}).text.splitlines())
    found = (words for words in lines if len(words) == 2 and "".join(words).isdigit())
    return [(user, int(started)) for user, started in found]


def _receiving(nginx: Nginx) -> bool:
    """Whether workers of earlier generations still write a request's body to a file.

    Where it cannot be seen they may, so then it is true. Only their own user may look.
    """
    users = {user for user, _ in _leaving(nginx)}
    seen = "".join(nginx.run(LEAVING, {"FILES": "yes"}, user).text for user in users)
    return bool(BODY.search(seen) or "denied" in seen)


def _connections(nginx: Nginx, servers: Iterable[str]) -> int:
    """Number of open connections from the proxy to these servers (`address:port`)."""
    ends = {
        f"{int.from_bytes(IPv4Address(address).packed, 'little'):08X}:{int(port):04X}"
        for address, _, port in (server.partition(":") for server in servers)
        if address
    }
    table = nginx.run("cat /proc/net/tcp", {}).text.splitlines()[1:]
    rows = (line.split() for line in table)
    return sum(1 for row in rows if len(row) > 3 and row[2] in ends and row[3] == "01")
