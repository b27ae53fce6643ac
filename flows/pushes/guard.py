"""What stands before the receiver: limits of size, rate and time, and one log line a request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import h11
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

LOG = logging.getLogger("nonstop.webhook")
PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,100}")  # of a delivery's id, that it may be logged
CALLERS = 1024  # addresses whose rate is remembered
TOLD = "nonstop.told"


@dataclass(frozen=True)
class Limits:
    """What one request, and one address, may take."""

    size: int = 1024 * 1024
    """Bytes of a body."""
    headers: float = 10.0
    """Seconds between two looks whether a request's headers have come."""
    body: float = 10.0
    """Seconds in which a body arrives."""
    answer: float = 10.0
    """Seconds in which it is answered."""
    rate: float = 300.0
    """Requests a second from one address."""
    burst: int = 600
    """Requests from one address at once, after a pause."""


class Metrics:
    """What Prometheus may ask."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nonstop_webhook_requests",
            "Requests by sender and status.",
            ("sender", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "nonstop_webhook_seconds",
            "Seconds until the answer.",
            ("sender",),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.runs = Counter(
            "nonstop_webhook_runs",
            "Runs that pushes were answered with, by app.",
            ("app",),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "nonstop_webhook_waiting",
            "Pushes that are kept and are no runs yet.",
            registry=self.registry,
        )


class TooMuch(Exception):
    """A limit was met."""

    def __init__(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Punctual(H11Protocol):
    """A connection that is closed when a request's headers do not come in time.

    Uvicorn bounds only how long nothing at all may come. It is closed at the second look that
    finds it waiting for the same request.
    """

    def __init__(self, *given: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*given, **named)
        self.seconds = limits.headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first look is to come."""
        super().connection_made(transport)
        self.loop.call_later(self.seconds, self._look, self.cycle)

    def _look(self, before: object) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.cycle is before:
            self.transport.close()
        else:
            self.loop.call_later(self.seconds, self._look, self.cycle)


def settings(limits: Limits) -> dict[str, Any]:
    """Of Uvicorn: nobody's headers are waited for longer, and no request is logged twice."""
    return {
        "http": partial(Punctual, limits=limits),
        "access_log": False,  # it would have the tokens of addresses; ours has not
        "log_config": None,
    }


class Guard:
    """Requests reach the app whole, not too large, not too fast, and are answered in time.

    Args:
        app: what answers.
        limits: what is let through.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app has answered, or a limit has."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        scope[TOLD] = told = {"sender": ""}
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._slow_down(scope)
            body = await self._body(scope, receive)
            async with asyncio.timeout(self.limits.answer):
                await self.app(scope, _replay(body, receive), watched)
        except TooMuch as limit:
            await _refuse(limit, watched)
        except TimeoutError:
            if not status:
                late = "The Prefect server did not answer in time: deliver it again."
                await _refuse(TooMuch(503, late, (b"retry-after", b"30")), watched)
        except Exception:
            status = status or 500  # Starlette answers so
            raise
        finally:
            self._tell(scope, told, status, time.monotonic() - began)

    def _slow_down(self, scope: Scope) -> None:
        caller = (scope.get("client") or ("",))[0]
        now = time.monotonic()
        left, since = self._callers.pop(caller, (float(self.limits.burst), now))
        left = min(float(self.limits.burst), left + (now - since) * self.limits.rate)
        self._callers[caller] = (left - 1 if left >= 1 else left), now
        if len(self._callers) > CALLERS:
            self._callers.popitem(last=False)
        if left < 1:
            raise TooMuch(429, "Too many requests: slow down.", (b"retry-after", b"1"))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        large = TooMuch(413, f"The body is larger than {self.limits.size} bytes.")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.limits.size:
                raise large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise TooMuch(400, "The body ended early.")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.limits.size:
                        raise large
        except TimeoutError:
            slow = f"The body did not arrive in {self.limits.body:g} s."
            raise TooMuch(408, slow, (b"connection", b"close")) from None
        return bytes(body)

    def _tell(self, scope: Scope, told: dict[str, Any], status: int, seconds: float) -> None:
        if scope["method"] != "POST" and status < 500:
            return
        sender = told["sender"] or "unknown"
        self.metrics.requests.labels(sender, str(status)).inc()
        self.metrics.seconds.labels(sender).observe(seconds)
        level = logging.INFO if status < 400 else logging.WARNING
        caller = (scope.get("client") or ("",))[0]
        fields = told | {"status": status, "seconds": round(seconds, 4), "caller": caller}
        LOG.log(level, "delivery", extra={"fields": fields})


class Lines(logging.Formatter):
    """Each record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, what, and the fields of a delivery."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "what": record.getMessage(),
        } | getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def plain(text: str) -> str:
    """An id that may stand in a log; empty for anything else."""
    return text if PLAIN.fullmatch(text) else ""


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(limit: TooMuch, send: Send) -> None:
    body = json.dumps({"message": limit.message}).encode()
    headers = [(b"content-type", b"application/json"), *limit.headers]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": limit.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
