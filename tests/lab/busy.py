"""A way to the tests' Prefect server on which some writes are refused, as when SQLite is locked."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
from prefect.settings import PREFECT_API_URL, temporary_settings


@dataclass
class Pace:
    """How the server takes some requests; may be changed meanwhile."""

    path: str
    """How their path ends."""
    slow: float
    """Seconds for one that it does not refuse."""
    asked: int = 0
    """How many came."""
    given_up: int = 0
    """Of how many nobody waited for the answer any more."""


@contextmanager
def busy(path: str, times: int, slow: float = 0) -> Iterator[Pace]:
    """Within, the server says 503 to the first so many requests whose path ends so.

    Args:
        path: the end of the path.
        times: how many it refuses.
        slow: seconds that it takes for the others.
    """
    pace = Pace(path, slow)
    server = urlsplit(str(PREFECT_API_URL.value()))._replace(path="").geturl()
    left, way = iter(range(times)), httpx.Client(timeout=60, trust_env=False)

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            concerned = self.path.endswith(pace.path)
            pace.asked += concerned
            if concerned and next(left, None) is not None:
                status, content = 503, b'{"exception_message": "Service Unavailable"}'
            else:
                time.sleep(pace.slow if concerned else 0)
                pace.given_up += self.left()
                headers = {"Content-Type": "application/json"}
                told = way.request(self.command, server + self.path, content=body, headers=headers)
                status, content = told.status_code, told.content
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def left(self) -> bool:
            """Whether the connection was closed at its other end."""
            heard, _, _ = select.select([self.connection], [], [], 0)
            return bool(heard) and not self.connection.recv(1, socket.MSG_PEEK)

        do_GET = do_POST = do_PATCH = answer  # noqa: N815  # the names that are called

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with way, ThreadingHTTPServer(("127.0.0.1", 0), Front) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{front.server_port}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            yield pace
        front.shutdown()
