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
        self._near: list[socket.socket] = []
        self._far: list[socket.socket] = []
        self._cut, self._heard = False, True

    def __enter__(self) -> Relay:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._door.close()

    def cut(self, *, heard: bool = True) -> None:
        """Every connection breaks, and none is taken any more; the engine may not hear of it."""
        self._cut, self._heard = True, heard
        for end in (*self._near, *(self._far if heard else ())):
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
                self._near.append(near)
                self._far.append(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=(*ends, self._hears), daemon=True).start()

    def _hears(self) -> bool:
        return self._heard
