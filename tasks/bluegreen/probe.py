"""One HTTP request to a replica or to the front door, from wherever it can be reached."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import httpx

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup
from tasks.bluegreen.gates import Gate
from tasks.bluegreen.nginx import Nginx

AGENT = "nonstop"
RELEASE_HEADER = "X-Nonstop-Release"
PREVIEW_HEADER = "X-Nonstop-Preview"
LARGEST_BODY = 1 << 20  # bytes of an answer that are looked at
CURL_CODES = {
    6: "its name does not resolve",
    7: "connection refused",
    28: "no answer in time",
    52: "an empty answer",
    56: "the connection was reset",
    127: "the proxy has no curl",
}


class Answer(NamedTuple):
    """What came back; status 0 and a reason when nothing did."""

    status: int
    headers: Mapping[str, str]  # names in small letters
    text: str
    reason: str = ""

    @property
    def release(self) -> str:
        """The release that nginx says it served."""
        return self.headers.get(RELEASE_HEADER.lower(), "")

    def __str__(self) -> str:
        """For an error: the status, or why there is none."""
        return f"status {self.status}" if self.status else self.reason


def unlike(gate: Gate, answer: Answer) -> str:
    """Why an answer is not what the gate asks for; empty when it is."""
    if answer.status not in gate.status:
        return f"{gate.path} answers {answer}" if answer.status else f"{gate.path}: {answer}"
    if gate.body and not re.search(gate.body, answer.text):
        return f"the body of {gate.path} does not match {gate.body!r}"
    return ""


class Probe(Protocol):
    """A place to send requests from."""

    def get(self, base: str, path: str, host: str, timeout: float) -> Answer:
        """GET on a fresh connection, no redirect followed, bounded by `timeout` seconds."""


class Direct:
    """From this process, where the engine is local or we run on the app's network."""

    def get(self, base: str, path: str, host: str, timeout: float) -> Answer:
        """GET on a fresh connection, no redirect followed, bounded by `timeout` seconds."""
        return asyncio.run(_get(base + path, {"Host": host, "User-Agent": AGENT}, timeout))


async def _get(url: str, headers: dict[str, str], timeout: float) -> Answer:
    """One request that ends in time, whatever the other side sends, and how slowly.

    Of an answer that is still coming when the time is over, what came is taken.
    """
    answer, body = None, bytearray()
    try:
        async with (
            asyncio.timeout(timeout),
            httpx.AsyncClient(trust_env=False, verify=_trusted(), timeout=None) as client,
            client.stream("GET", url, headers=headers) as answer,
        ):
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) >= LARGEST_BODY:
                    break
    except TimeoutError:
        if answer is None:
            return Answer(0, {}, "", f"no answer in {timeout:g} s")
    except (httpx.HTTPError, LookupError) as error:
        return Answer(0, {}, "", _cause(error))
    assert answer is not None
    text = body.decode(answer.encoding or "utf-8", errors="replace")
    return Answer(answer.status_code, dict(answer.headers), text)


def _cause(error: BaseException) -> str:
    """Why nothing came back: the system's own word where it has one, like `Connection refused`."""
    first = error
    while below := first.__cause__ or first.__context__:
        first = below
    if isinstance(first, ssl.SSLError):  # its number is no errno
        return str(getattr(first, "verify_message", "") or first.reason or first)
    number = first.errno if isinstance(first, OSError) else None
    return os.strerror(number) if number and number > 0 else str(error) or type(error).__name__


@functools.cache
def _trusted() -> ssl.SSLContext:
    """Whom an https address is believed; made once, as it takes 15 ms."""
    return httpx.create_ssl_context()


class FromProxy:
    """From the proxy's container, where container addresses cannot be reached from here."""

    def __init__(self, engine: Engine, container: str) -> None:
        self.engine, self.container = engine, container

    def get(self, base: str, path: str, host: str, timeout: float) -> Answer:
        """GET on a fresh connection, no redirect followed, bounded by `timeout` seconds."""
        command = [
            "curl",
            "-s",
            "-i",
            "--http1.1",
            "--noproxy",
            "*",
            "--max-time",
            str(timeout),
            "-A",
            AGENT,
            "-H",
            f"Host: {host}",
            base + path,
        ]
        try:
            output = self.engine.exec(self.container, command, timeout=timeout + 5)
        except EngineHiccup as error:
            return Answer(0, {}, "", error.what)
        if output.code != 0:
            why = CURL_CODES.get(output.code, f"curl ended with {output.code}")
            return Answer(0, {}, "", why)
        head, _, body = output.text.partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        fields = (line.partition(":")[::2] for line in lines)
        return Answer(
            int(first.split()[1]),
            {k.strip().lower(): v.strip() for k, v in fields},
            body[:LARGEST_BODY],
        )


def nearest(engine: Engine, nginx: Nginx) -> Probe:
    """Direct where container addresses are reached from here, else from the proxy.

    That something answers at such an address is no proof: other hosts use the same private ranges.
    So it is direct only where the engine's own bridge or a container's own address is ours.
    """
    address, network = nginx.address() or "127.0.0.1", engine.network(nginx.proxy.network)
    ours = network is not None and (_bridge(network) in _interfaces() or _among(network))
    reachable = ours and _connects(address, nginx.proxy.listen)
    return Direct() if reachable else FromProxy(engine, nginx.id)


def _bridge(network: Mapping[str, Any]) -> str:
    named = (network.get("Options") or {}).get("com.docker.network.bridge.name")
    return str(named or f"br-{network['Id'][:12]}")


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _among(network: Mapping[str, Any]) -> bool:
    """Whether this process runs in a container of the network, by its address."""
    ends = network.get("Containers") or {}
    addresses = {end["IPv4Address"].partition("/")[0] for end in ends.values()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        for address in sorted(addresses)[:1]:
            try:
                to.connect((address, 9))  # sends nothing, but shows which address would be used
            except OSError:
                return False
            return to.getsockname()[0] in addresses
    return False


class FrontDoor:
    """The public listener, asked as a visitor asks it.

    Args:
        engine: where the proxy is.
        nginx: the proxy's.
        app: whose site.
        host: the name that the site is asked by; empty: it is found out.
    """

    def __init__(self, engine: Engine, nginx: Nginx, app: App, host: str = "") -> None:
        self.host, rather = host or app.server_name, app.unlikely_name
        if not host and rather != self.host and self.host in nginx.names(apart_from=app.name):
            self.host = rather  # the other site has that name, this one every name that is left
        self._apart = ThreadPoolExecutor(1)
        self.probe: Probe = Direct()
        self.base = app.proxy.url or self._published(engine, nginx)
        if not self.base:
            self.probe = nearest(engine, nginx)
            direct = isinstance(self.probe, Direct) and nginx.address()
            self.base = f"http://{direct or '127.0.0.1'}:{app.proxy.listen}"

    def get(self, path: str, timeout: float) -> Answer:
        """One visitor's request.

        In a thread of its own: an event loop may swallow what a signal's handler raises in it.
        """
        return self._apart.submit(self.probe.get, self.base, path, self.host, timeout).result()

    @staticmethod
    def _published(engine: Engine, nginx: Nginx) -> str:
        port = nginx.proxy.listen
        for end in (nginx.seen["NetworkSettings"]["Ports"] or {}).get(f"{port}/tcp") or []:
            host = engine.host if end["HostIp"] in ("0.0.0.0", "::", "") else end["HostIp"]
            if _connects(host, int(end["HostPort"])):
                bracketed = f"[{host}]" if ":" in host else host
                return f"http://{bracketed}:{end['HostPort']}"
        return ""


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
