"""Visitors in a process of their own, who count exactly what they were answered.

Kinds: keep-alive GETs, GETs on fresh connections, POSTs with ids on one pooled connection, slow
downloads, a WebSocket, and a connection that is opened ahead and asks late. Nothing is retried. A
request is lost when its connection breaks before the whole answer, or the answer is a 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PATIENCE = 30.0  # seconds that a visitor waits for an answer
IDLE = 3.0  # seconds that a connection opened ahead stays silent
SHOWN = 20
KINDS = ("get", "fresh", "post", "download", "ahead", "websocket")


@dataclass
class Heard:
    """What visitors were answered."""

    requests: int = 0
    lost: int = 0
    losses: list[str] = field(default_factory=list)  # the first of them, as `kind: reason`
    errors: Counter[str] = field(default_factory=Counter)  # 5xx among them, by X-Release
    kinds: Counter[str] = field(default_factory=Counter)  # requests by kind
    releases: Counter[str] = field(default_factory=Counter)  # answers by the app's X-Release
    bodies: Counter[str] = field(default_factory=Counter)  # answers by text
    websockets: Counter[str] = field(default_factory=Counter)  # ends: "1001", "cut", "open"
    confirmed: list[str] = field(default_factory=list)  # ids of POSTs that were answered 200
    slowest: float = 0.0  # seconds of the slowest GET
    silence: float = 0.0  # seconds of the longest time without a right answer
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0


class Reply:
    """One whole answer."""

    def __init__(self, head: str, body: bytes) -> None:
        first, *lines = head.rstrip("\r\n").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {k.lower(): v.strip() for k, _, v in (x.partition(":") for x in lines)}
        self.body = body


class Connection:
    """One HTTP/1.1 connection to the front door."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self.host, self.port, self.name = host, port, name
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.host, self.port)
        return self.streams

    def close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None

    async def ask(self, method: str, path: str, body: bytes = b"", keep: bool = True) -> Reply:
        reader, writer = await self.open()
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: {self.name}\r\nUser-Agent: visitor\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        reply = Reply(head, b"")
        if "content-length" in reply.headers:
            reply.body = await reader.readexactly(int(reply.headers["content-length"]))
        else:
            reply.body = await reader.read()
        if not keep or reply.headers.get("connection") == "close":
            self.close()
        return reply


class Crowd:
    """All visitors of one front door."""

    def __init__(self, url: str, name: str, rate: float, download: float, limit: int) -> None:
        parts = urlsplit(url)
        self.place = (parts.hostname or "127.0.0.1", parts.port or 80, name)
        self.rate, self.download, self.limit = rate, download, limit
        self.heard = Heard()
        self.over = asyncio.Event()
        self.spoken = time.monotonic()

    async def once(
        self,
        kind: str,
        connection: Connection,
        method: str,
        path: str,
        body: bytes = b"",
        keep: bool = True,
    ) -> None:
        heard = self.heard
        heard.requests += 1
        heard.kinds[kind] += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await connection.ask(method, path, body, keep)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            connection.close()
            self.lose(kind, repr(error))
            return
        if kind in ("get", "fresh"):
            heard.slowest = max(heard.slowest, time.monotonic() - began)
        release = reply.headers.get("x-release", "")
        heard.releases[release] += 1
        if reply.status < 500:
            now = time.monotonic()
            heard.silence, self.spoken = max(heard.silence, now - self.spoken), now
        if reply.status >= 500:
            heard.errors[release] += 1
            self.lose(kind, f"status {reply.status}")
        elif kind == "get":
            heard.bodies[reply.body.decode(errors="replace")] += 1
        elif kind == "post":
            heard.confirmed.append(body.decode())

    def lose(self, kind: str, reason: str) -> None:
        self.heard.lost += 1
        if len(self.heard.losses) < SHOWN:
            self.heard.losses.append(f"{time.time():.3f} {kind}: {reason}")

    async def steadily(
        self, kind: str, rate: float, method: str, path: str, keep: bool = True
    ) -> None:
        """One visitor, `rate` requests a second, without catching up after a slow answer."""
        connection = Connection(*self.place)
        number = 0
        due = time.monotonic()
        while not self.over.is_set() and self.heard.requests < self.limit:
            number += 1
            body = f"{os.getpid()}-{number}".encode() if method == "POST" else b""
            await self.once(kind, connection, method, path, body, keep)
            due = max(due + 1 / rate, time.monotonic() - 0.05)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        connection.close()

    async def downloads(self) -> None:
        while not self.over.is_set():
            await self.once(
                "download",
                Connection(*self.place),
                "GET",
                f"/download?seconds={self.download:g}",
                keep=False,
            )

    async def ahead(self) -> None:
        """A browser that opens a connection long before it asks."""
        while not self.over.is_set():
            connection = Connection(*self.place)
            try:
                await connection.open()
            except OSError as error:
                self.heard.requests += 1
                self.lose("ahead", repr(error))
                continue
            await self.wait(IDLE)
            await self.once("ahead", connection, "GET", "/", keep=False)

    async def websocket(self) -> None:
        """Echoes until it is closed, then comes again; a close without a word is a loss."""
        ends = self.heard.websockets
        while not self.over.is_set():
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(*self.place[:2])
                    key = base64.b64encode(os.urandom(16)).decode()
                    writer.write(
                        f"GET /ws HTTP/1.1\r\nHost: {self.place[2]}\r\nUpgrade: websocket"
                        f"\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                        f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
                    )
                    head = await reader.readuntil(b"\r\n\r\n")
                if b" 101 " not in head.partition(b"\r\n")[0]:
                    raise OSError(head.partition(b"\r\n")[0].decode())
                end = await self.echoes(reader, writer)
                writer.close()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                end = "cut"
                self.lose("websocket", repr(error))
            ends[end] += 1

    async def echoes(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        number = 0
        while not self.over.is_set():
            number += 1
            self.heard.requests += 1
            self.heard.kinds["websocket"] += 1
            text = str(number).encode()
            writer.write(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
            async with asyncio.timeout(PATIENCE):
                kind, length = await reader.readexactly(2)
                answer = await reader.readexactly(length)
            if kind & 15 == 8:
                return str(int.from_bytes(answer[:2], "big"))
            if answer != text:
                raise OSError(f"echo {answer!r} of {text!r}")
            await self.wait(0.2)
        return "open"

    async def wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return

    def report(self) -> None:
        print(json.dumps(vars(self.heard)), flush=True)

    async def run(self, kinds: set[str]) -> None:
        share = self.rate / 10
        people = {
            "get": [self.steadily("get", share, "GET", "/") for _ in range(8)],
            "fresh": [self.steadily("fresh", share, "GET", "/", keep=False)],
            "post": [self.steadily("post", share, "POST", "/posts")],
            "download": [self.downloads()],
            "ahead": [self.ahead()],
            "websocket": [self.websocket()],
        }
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.over.set)
        loop.add_signal_handler(signal.SIGUSR1, self.report)
        began = time.monotonic()
        print("ready", flush=True)
        wanted = [person for kind, group in people.items() for person in group if kind in kinds]
        for kind, group in people.items():
            for person in group:
                if kind not in kinds:
                    person.close()
        await asyncio.gather(*wanted)
        self.heard.seconds = time.monotonic() - began


class Visitors:
    """Keeps visitors coming while it is entered; `heard` is filled when it is left."""

    def __init__(
        self,
        url: str,
        name: str = "localhost",
        *,
        rate: float = 200,
        download: float = 3,
        kinds: Iterable[str] = KINDS,
    ) -> None:
        self.heard = Heard()
        self.command = [
            sys.executable,
            "-m",
            "tests.lab.visitors",
            url,
            "--name",
            name,
            "--rate",
            str(rate),
            "--download",
            str(download),
            "--kinds",
            ",".join(kinds),
        ]

    def __enter__(self) -> Heard:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.out.readline()
        return self.heard

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            said = self.process.communicate(timeout=60)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.take(said)

    def so_far(self) -> Heard:
        """What was heard until now; the visitors go on."""
        self.process.send_signal(signal.SIGUSR1)
        return self.take(self.out.readline())

    def take(self, said: str) -> Heard:
        for name, value in json.loads(said).items():
            setattr(self.heard, name, Counter(value) if isinstance(value, dict) else value)
        return copy.deepcopy(self.heard)


def posts_in_order(file: Path, confirmed: list[str]) -> str:
    """What is wrong with the POSTs that the app has in its file; empty: each arrived once."""
    arrived = Counter(file.read_text().split())
    missing = [id_ for id_ in confirmed if not arrived[id_]]
    doubled = [id_ for id_, count in arrived.items() if count > 1]
    return "; ".join(
        f"{what}: {len(ids)}, like {ids[0]}"
        for what, ids in (("confirmed but not there", missing), ("doubled", doubled))
        if ids
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Visitors; SIGTERM ends them, then they report.")
    parser.add_argument("url")
    parser.add_argument("--name", default="localhost", help="host name that they ask for")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--download", type=float, default=3, help="seconds of one download")
    parser.add_argument("--limit", type=int, default=2_000_000, help="requests at most")
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    crowd = Crowd(given.url, given.name, given.rate, given.download, given.limit)
    asyncio.run(crowd.run(set(given.kinds.split(","))))
    crowd.report()


if __name__ == "__main__":
    main()
