"""One run per app at a time: a lock in the proxy, which the kernel frees when its holder dies.

An exec in the proxy's container holds an flock for as long as its standard input is connected to
this process, which says so every few seconds. So it is the same lock from whatever machine or
Prefect server a run comes, and there is none to be cleaned up after a run that died. A run that
lost the connection ends the exec by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from tasks.bluegreen.commands import Session
from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.errors import EngineHiccup, Locked
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.scripts import FREE, LOCK, lock_file

ANSWER = 15.0  # seconds in which the exec has to say whether it holds the lock
FREED = 5.0  # seconds in which it has to say that it no longer does
AGAIN = 1.0  # seconds between two tries
TELL = 30.0
BEAT = 5.0  # seconds between two signs of life; the exec waits for 30


class Lock:
    """Held while entered.

    Args:
        engine: a connection that only this object uses.
        nginx: the proxy that the app is behind.
        app: name of the app.
        holder: who asks, for others to read; different for every run.
        wait: seconds to wait for another run; 0: give up at once.
        say: tells whom it waits for.
    """

    def __init__(
        self,
        engine: Engine,
        nginx: Nginx,
        app: str,
        holder: str,
        wait: float,
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.nginx, self.app = engine, nginx, app
        self.holder, self.wait, self.say = holder, wait, say
        self._names = {"LOCK": lock_file(app), "HOLDER": holder}
        self._session: Session | None = None
        self._process = ""  # of the exec, in the container
        self._over = threading.Event()

    def __enter__(self) -> Lock:
        began = time.monotonic()
        told = -TELL
        while (other := self._try()) is not None:
            waited = time.monotonic() - began
            if waited >= self.wait:
                raise Locked(
                    f"{self.app} is being changed by {other}: wait for it, or ask with a longer "
                    f"`wait` (it was {self.wait:g} s). Nothing was touched."
                )
            if waited - told >= TELL:
                told = waited
                self.say(f"waiting for {other}, at most {self.wait - waited:.0f} s more")
            time.sleep(AGAIN)
        threading.Thread(target=self._beat, name=f"lock of {self.app}", daemon=True).start()
        return self

    def __exit__(self, failure: object, *_: object) -> None:
        self._over.set()
        word = "x" if failure else "q"
        with suppress(TimeoutError, EngineHiccup):  # the engine is silent or away: soon it is free
            if not self._told(word):
                names = self._names | {"WORD": word, "PROCESS": self._process}
                self.nginx.run(FREE, names, user="0")
        self._close()

    def _told(self, word: str) -> bool:
        """Whether the exec heard how the run ended; it outlives an engine that is restarted.

        Raises:
            TimeoutError: the engine is silent.
        """
        if self._session is None:
            return True
        try:
            self._session.say(word)
            return self._session.hear(FREED, until="\n") == "freed\n"
        except TimeoutError:
            raise
        except OSError:
            return False

    def _beat(self) -> None:
        with suppress(OSError):  # the engine went away; the cutover looks whose the lock is
            while not self._over.wait(BEAT):
                if self._session is not None:
                    self._session.say(".")

    def _try(self) -> str | None:
        """None: the lock is ours; else who has it."""
        self._session = self.engine.session(
            self.nginx.id, ["sh", "-c", LOCK], environment=self._names, user="0"
        )
        with engine_words(f"lock {self.app} in {self.nginx.proxy.container}"):
            said = self._session.hear(ANSWER, until="\n").strip()
        if said.startswith("held "):
            self._process = said.removeprefix("held ")
            return None
        self._close()
        if not said:
            raise EngineHiccup(f"The lock of {self.app} in {self.nginx.proxy.container} is silent.")
        return said

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
