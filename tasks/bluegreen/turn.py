"""The right to change a site of a proxy: one run at a time has it, of whatever app."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tasks.bluegreen.containers import engine_words
from tasks.bluegreen.errors import EngineHiccup
from tasks.bluegreen.scripts import LEAVE, PROXY_LOCK, TAKE
from tasks.bluegreen.shell import SHELLS, Shell

LONGEST = 75.0  # seconds to wait for it; another app's reload may go first
AGAIN = 0.1  # seconds between two tries
ANSWER = 15.0  # seconds in which the shell has to say whether it has it


@contextmanager
def turn(proxy: str, container: str, user: str, holder: str) -> Iterator[Shell]:
    """Nobody else changes a site while entered; the shell is the one that has the right.

    Args:
        proxy: name of its container.
        container: id of that.
        user: as whom the shell runs; empty: the container's own, which is root.
        holder: who asks; a change of its own that was cut short makes way.

    Raises:
        EngineHiccup: another one was being made all the while, or the shell failed.
    """
    names = {"PROXY_LOCK": PROXY_LOCK, "HOLDER": holder}
    with SHELLS.one(container, user) as shell:
        deadline = time.monotonic() + LONGEST
        while not _taken(shell, proxy, names):
            if time.monotonic() > deadline:
                raise EngineHiccup(f"Another site of {proxy} is being changed all the while.")
            time.sleep(AGAIN)
        yield shell
        with suppress(TimeoutError):  # a shell that is silent is closed, which is as good
            shell.run(LEAVE, names, ANSWER, own=True)


def _taken(shell: Shell, proxy: str, names: dict[str, str]) -> bool:
    with engine_words(f"lock the sites of {proxy}"):
        said = shell.run(TAKE, names, ANSWER, own=True)
    if said is None or not said.text.endswith(("taken\n", "busy\n")):
        why = said.text.strip()[-300:] if said else "the shell was ended"
        raise EngineHiccup(
            f"{PROXY_LOCK} in {proxy}, which has to be writable, could not be locked: {why}."
        )
    return said.text.endswith("taken\n")
