"""A way to the engine that can be cut, as a network can."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

from tests.lab.tls import ENGINE, pump


class Relay:
    """A socket in a folder behind which the engine is, while it is entered and not cut."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/relay.sock"
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(folder / "relay.sock"))
        self._door.listen()
        self._open: list[socket.socket] = []
        self._cut = False

    def __enter__(self) -> Relay:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._door.close()

    def cut(self) -> None:
        """Every connection breaks, and none is taken any more."""
        self._cut = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Connections are taken again."""
        self._cut = False

    def _serve(self) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                near, _ = self._door.accept()
                if self._cut:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(ENGINE)
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()
