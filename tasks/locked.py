"""locked: one run per app at a time, from whatever machine or Prefect server it comes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime

from prefect.runtime import flow_run

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import Unavailable
from tasks.bluegreen.lock import Lock
from tasks.bluegreen.nginx import Nginx
from tasks.step import say

LONGEST_WAIT = 3 * 3600  # seconds; a flow may take four hours


@contextmanager
def locked(
    app: str, proxy: Proxy, wait: float, give_way: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """The app is this run's while entered; gives the run's name as the lock's holder.

    Args:
        app: name of the app.
        proxy: where the lock is.
        wait: seconds to wait for another run; 0: give up at once.
        give_way: raises if there is no reason to wait any longer; asked every half minute.

    Raises:
        Locked: another run has it, with who and since when.
    """
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = (
        f"run {flow_run.name} ({flow_run.id}) on {socket.gethostname()}, process {os.getpid()}, "
        f"since {since}"
    )

    def waiting(whom: str) -> None:
        say(whom)
        with suppress(Unavailable):  # asked again at the end
            give_way()

    with ExitStack() as stack:
        deadline = time.monotonic() + wait
        for one in _proxies(app, proxy):
            engine = stack.enter_context(Engine())
            left = max(deadline - time.monotonic(), 0)
            stack.enter_context(Lock(engine, Nginx(engine, one), app, holder, left, waiting))
        yield holder


def _proxies(app: str, proxy: Proxy) -> list[Proxy]:
    """This one, and those that releases of the app are behind: who runs it there is kept out, too.

    In one order for every run, so that no two wait for each other.
    """
    with Engine() as engine:
        found = {one.container: one for one in engine.proxies(app) if engine.runs(one.container)}
    return [one for _, one in sorted((found | {proxy.container: proxy}).items())]
