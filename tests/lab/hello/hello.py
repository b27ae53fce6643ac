"""The tutorial's app, and switches for everything that an app can do wrong.

GET /this answers `Hi there, I love this! ` and MESSAGE. Every answer names the release in
X-Release. Switches are environment variables: PORT, RELEASE, START_SECONDS (before it listens),
HEALTHY_AFTER (seconds; /health answers 503 until then), HEALTH_STATUS (of /health; 503: it never
becomes healthy), CRASH=start or seconds, FAIL_SHARE (of visitors' requests that get a 500),
FAIL_FIRST (so many of visitors' requests get a 500, the rest are fine), LATENCY_SECONDS,
COLD_SECONDS (the first request takes so long), IGNORE_SIGTERM, POSTS_FILE (where ids of POSTs to
/posts are appended), PRINT (a line for the log). /download?seconds=N is slow, /ws echoes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

SET = os.environ
RELEASE = SET.get("RELEASE", "")
STARTED = time.monotonic()
WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
POSTS: Counter[str] = Counter()


def seconds(name: str) -> float:
    return float(SET.get(name) or 0)


class App:
    """One process's state."""

    def __init__(self) -> None:
        self.busy = 0
        self.cold = seconds("COLD_SECONDS")
        self.unlucky = int(SET.get("FAIL_FIRST", "0"))
        self.stopping = asyncio.Event()
        self.sockets: set[asyncio.StreamWriter] = set()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.busy += 1
                try:
                    if not await self.request(head.decode("latin-1"), reader, writer):
                        break
                finally:
                    self.busy -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def request(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length") or 0))
        path, _, query = target.partition("?")
        if path == "/ws" and "upgrade" in headers:
            await self.websocket(headers["sec-websocket-key"], reader, writer)
            return False
        if path == "/download":
            await self.download(float(query.partition("=")[2] or 1), writer)
            return False
        status, text = await self.answer(method, path, headers, body)
        close = self.stopping.is_set() or headers.get("connection", "").lower() == "close"
        data = text.encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nX-Release: {RELEASE}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(data)}\r\nConnection: {'close' if close else 'keep-alive'}"
            "\r\n\r\n".encode()
            + data
        )
        await writer.drain()
        return not close

    async def answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, str]:
        if path == "/health":
            late = time.monotonic() - STARTED < seconds("HEALTHY_AFTER")
            return (503, "not yet") if late else (int(SET.get("HEALTH_STATUS", "200")), "ok")
        if self.cold:
            cold, self.cold = self.cold, 0
            await asyncio.sleep(cold)
        await asyncio.sleep(seconds("LATENCY_SECONDS"))
        ours = headers.get("user-agent", "").startswith("nonstop")
        if not ours and (self.unlucky > 0 or random.random() < seconds("FAIL_SHARE")):
            self.unlucky -= 1
            return 500, "no luck"
        if path == "/posts" and method == "POST":
            POSTS[body.decode()] += 1
            if SET.get("POSTS_FILE"):
                with Path(SET["POSTS_FILE"]).open("ab") as file:
                    file.write(body + b"\n")
            return 200, "counted"
        if path == "/posts":
            return 200, json.dumps(POSTS)
        return 200, f"Hi there, I love {path[1:]}! {SET.get('MESSAGE', '')}"

    async def download(self, duration: float, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 200 X\r\nX-Release: {RELEASE}\r\nConnection: close\r\n"
            f"Content-Length: {int(duration * 10) * 1000}\r\n\r\n".encode()
        )
        for _ in range(int(duration * 10)):
            await asyncio.sleep(0.1)
            writer.write(b"." * 1000)
            await writer.drain()

    async def websocket(
        self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        accept = base64.b64encode(hashlib.sha1(key.encode() + WEBSOCKET).digest()).decode()
        writer.write(
            f"HTTP/1.1 101 X\r\nX-Release: {RELEASE}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        self.sockets.add(writer)
        try:
            while True:
                kind, size = await reader.readexactly(2)
                length = size & 127
                if length == 126:
                    length = int.from_bytes(await reader.readexactly(2), "big")
                mask = await reader.readexactly(4)
                data = bytes(
                    b ^ mask[i % 4] for i, b in enumerate(await reader.readexactly(length))
                )
                if kind & 15 == 8:
                    writer.write(frame(8, data[:2]))
                    return
                writer.write(frame(10 if kind & 15 == 9 else kind & 15, data))
                await writer.drain()
        finally:
            self.sockets.discard(writer)

    async def stop(self, server: asyncio.Server) -> None:
        """Takes no new connection, tells WebSockets 1001, finishes the requests it has."""
        await self.stopping.wait()
        server.close()
        for writer in list(self.sockets):
            writer.write(frame(8, (1001).to_bytes(2, "big")))
        while self.busy:
            await asyncio.sleep(0.02)


def frame(kind: int, data: bytes) -> bytes:
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
    return bytes([128 | kind]) + size + data


async def main() -> None:
    app = App()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if SET.get("IGNORE_SIGTERM"):
            signal.signal(number, signal.SIG_IGN)
        else:
            loop.add_signal_handler(number, app.stopping.set)
    if SET.get("PRINT"):
        print(SET["PRINT"], flush=True)
    if SET.get("CRASH") == "start":
        sys.exit("the database is not there")
    if SET.get("CRASH"):
        loop.call_later(seconds("CRASH"), lambda: os._exit(3))
    await asyncio.sleep(seconds("START_SECONDS"))
    server = await asyncio.start_server(
        app.connection, "0.0.0.0", int(SET.get("PORT", "3000")), backlog=1024
    )
    print(f"release {RELEASE} listens", flush=True)
    await app.stop(server)


asyncio.run(main())
