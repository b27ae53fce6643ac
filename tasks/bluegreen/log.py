"""A container's log, which is asked for again and again.

It is not followed: through a rotation engines tell a follower lines twice (json-file) or not at all
(local), as measured with 20.10; and when the connection is lost, the client ends the follower as if
the container had ended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from docker.errors import DockerException

from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.labels import config

BROKEN = 3  # kind of the frame in which the engine says that it cannot read on


class Log:
    """What a container wrote to its standard output.

    Args:
        engine: where.
        seen: the container, as the engine describes it.
    """

    def __init__(self, engine: Engine, seen: dict[str, Any]) -> None:
        self.engine, self.id = engine, str(seen["Id"])
        self.name = str(seen["Name"]).lstrip("/")
        self.framed = not config(seen, "Tty")

    def lines(self, entries: int, since: float = 0.0) -> Iterator[bytes]:
        """Whole lines among the newest entries, the oldest first: a time stamp, a space, the text.

        Args:
            entries: how many the engine looks at, those of standard error included.
            since: Unix time (seconds) from which on it tells them; 0: all.

        Raises:
            EngineHiccup: in the engine's words.
        """
        params = {"stdout": "1", "timestamps": "1", "tail": str(entries)}
        if since:
            params["since"] = f"{since:.6f}"
        api = self.engine.api
        with engine_words(f"read the log of {self.name}"):
            url = api._url("/containers/{0}/logs", self.id)
            with api._get(url, params=params, stream=True) as answer:
                api._raise_for_status(answer)
                pieces = answer.iter_content(1 << 16)
                yield from _lines(_payloads(pieces) if self.framed else pieces, framed=self.framed)


def moment(line: bytes) -> float:
    """Unix time (seconds, microseconds rounded down) of a line's stamp; 0: it has none."""
    try:
        return datetime.fromisoformat(line.partition(b" ")[0].decode()).timestamp()
    except ValueError:
        return 0.0


def _lines(pieces: Iterable[bytes], *, framed: bool) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        # Of a long line the engine makes several entries, each with a stamp.
        more = piece.partition(b" ")[2] if framed and rest else piece
        *whole, rest = (rest + more).split(b"\n")
        yield from whole


def _payloads(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What is in the engine's frames: their kind, three bytes, the payload's length, the payload.

    Raises:
        DockerException: the engine cannot read on, in its words.
    """
    rest = b""
    for piece in pieces:
        rest, at = rest + piece, 0
        while at + 8 <= len(rest):
            kind, length = struct.unpack_from(">BxxxL", rest, at)
            if at + 8 + length > len(rest):
                break
            payload = rest[at + 8 : at + 8 + length]
            if kind == BROKEN:
                raise DockerException(payload.decode(errors="replace"))
            yield payload
            at += 8 + length
        rest = rest[at:]
