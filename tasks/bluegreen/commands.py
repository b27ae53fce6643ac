"""Commands in containers: run to their end, or held open for as long as we live."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import Any, NamedTuple

TAKEN = 15.0  # seconds in which the engine has to take what is said to a command


class Output(NamedTuple):
    """What a command in a container printed, and how it ended."""

    code: int
    text: str


class Session:
    """A command whose standard input is connected to this process, so that it dies with us.

    Args:
        api: the client.
        container: name or id.
        command: the argument vector.
        environment: variables for this command.
        user: user name or id; empty: the container's own.
    """

    def __init__(
        self,
        api: Any,
        container: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        user: str = "",
    ) -> None:
        self._api = api
        made = api.exec_create(container, command, stdin=True, environment=environment, user=user)
        self.id: str = made["Id"]
        self._stream: Any = api.exec_start(self.id, socket=True)
        self._socket: socket.socket = getattr(self._stream, "_sock", self._stream)
        self._early = _read_with_headers(self._stream, self._socket)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def hear(self, seconds: float, until: str = "") -> str:
        """What it printed up to and with `until`; up to its end, if it ends or `until` is empty.

        Raises:
            TimeoutError: neither came in time.
        """
        early, self._early = self._early, b""
        text = _read_frames(self._socket, time.monotonic() + seconds, until.encode(), early)
        self._socket.settimeout(None)
        return text.decode(errors="replace")

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        code: int | None = self._api.exec_inspect(self.id)["ExitCode"]
        return code

    def say(self, text: str) -> None:
        """Writes to its standard input.

        Raises:
            OSError: the engine has closed it, or does not take it.
        """
        self._socket.settimeout(TAKEN)
        self._socket.sendall(text.encode())

    def close(self) -> None:
        """Its standard input is at its end."""
        with suppress(OSError):  # the engine may have closed it already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def _read_with_headers(stream: Any, sock: socket.socket) -> bytes:
    """What came in one piece with the answer's headers: a command that is quick may say all of it.

    The client reads headers through a buffer, and hands out the socket below it.
    """
    answer: Any = getattr(getattr(stream, "_response", None), "raw", None)
    buffer: Any = getattr(getattr(answer, "_fp", None), "fp", None)
    sock.setblocking(False)
    try:
        early: bytes = buffer.peek() if hasattr(buffer, "peek") else b""
    except ssl.SSLWantReadError:  # how TLS says that nothing came yet
        early = b""
    sock.setblocking(True)
    return early


def _read_frames(sock: socket.socket, deadline: float, until: bytes, early: bytes) -> bytes:
    """What an exec prints: frames of 8 bytes of header and a payload."""
    received, ended = bytearray(early), False
    while True:
        text, at = bytearray(), 0
        while at + 8 <= len(received):
            (length,) = struct.unpack(">L", received[at + 4 : at + 8])
            text += received[at + 8 : at + 8 + length]
            at += 8 + length
        if ended or (until and until in text):
            return bytes(text)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("it did not end in time")
        sock.settimeout(left)
        chunk = sock.recv(65536)
        received += chunk
        ended = not chunk
