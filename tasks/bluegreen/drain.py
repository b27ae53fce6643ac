"""The drain: how the requests of servers that nginx no longer offers come to their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tasks.bluegreen.model import Drained
from tasks.bluegreen.nginx import Nginx

GREEN_DRAIN = 20.0  # seconds for requests that a green which failed is still answering; blue waits
TELL = 5.0  # seconds between two lines of progress
HEADER_TIMEOUT = 61.0  # seconds: nginx's default client_header_timeout, and a moment


def drain(
    nginx: Nginx,
    servers: frozenset[str],
    limit: float,
    earlier: Iterable[int],
    say: Callable[[str], None],
) -> Drained:
    """Nobody sends requests to these servers any more, or the limit has passed.

    A worker that stopped accepting can still ask an upstream that it has no connection to: it
    may be reading a long upload, or hold a connection that a browser opened ahead. So its end
    is waited for. Where it also serves visitors of other sites, who may stay for hours, it is
    enough that the servers had no connection for as long as such a request takes to come, and
    that no upload is on its way.

    Args:
        nginx: the proxy.
        servers: `address:port` of each replica.
        limit: seconds.
        earlier: workers that left before the servers could be reached through them, or so
            long ago that only the connections they have still count.
        say: tells progress.
    """
    before = set(earlier)
    began = asked = time.monotonic()
    told = 0.0
    while True:
        old = nginx.leaving()
        left = nginx.connections(servers) if old else 0
        now = time.monotonic()
        waited = now - began
        if left:
            asked = now
        over = old <= before or (now - asked > HEADER_TIMEOUT and not nginx.receiving())
        if (over and not left) or waited > limit:
            return Drained(seconds=round(waited, 3), left=left)
        if waited - told >= TELL:
            told = waited
            say(
                f"draining for {waited:.0f} s of at most {limit:.0f} s: {left} connections, "
                f"{len(old - before)} old workers"
            )
        time.sleep(min(0.1 + waited / 20, 1.0))
