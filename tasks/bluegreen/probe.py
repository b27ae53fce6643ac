"""One HTTP request to a replica or to the front door, from wherever it can be reached."""

from __future__ import annotations

import functools
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import httpx

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup
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


class Probe(Protocol):
    """A place to send requests from."""

    def get(self, base: str, path: str, host: str, timeout: float) -> Answer:
        """GET on a fresh connection, no redirect followed, bounded by `timeout` seconds."""


class Direct:
    """From this process, where the engine is local or we run on the app's network."""

    def __init__(self) -> None:
        self.client = httpx.Client(
            trust_env=False, limits=httpx.Limits(max_keepalive_connections=0), verify=_trusted()
        )

    def get(self, base: str, path: str, host: str, timeout: float) -> Answer:
        """GET on a fresh connection, no redirect followed, bounded by `timeout` seconds."""
        headers = {"Host": host, "User-Agent": AGENT}
        deadline = time.monotonic() + timeout
        try:
            with self.client.stream("GET", base + path, headers=headers, timeout=timeout) as answer:
                body = bytearray()
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) >= LARGEST_BODY or time.monotonic() > deadline:
                        break
                return Answer(
                    answer.status_code,
                    dict(answer.headers),
                    body.decode(answer.encoding or "utf-8", errors="replace"),
                )
        except httpx.TimeoutException:
            return Answer(0, {}, "", f"no answer in {timeout:g} s")
        except (httpx.HTTPError, LookupError) as error:
            return Answer(0, {}, "", str(error) or type(error).__name__)


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
    named = (network["Options"] or {}).get("com.docker.network.bridge.name")
    return str(named or f"br-{network['Id'][:12]}")


def _interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _among(network: Mapping[str, Any]) -> bool:
    """Whether this process runs in a container of the network, by its address."""
    addresses = {end["IPv4Address"].partition("/")[0] for end in network["Containers"].values()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        for address in sorted(addresses)[:1]:
            try:
                to.connect((address, 9))  # sends nothing, but shows which address would be used
            except OSError:
                return False
            return to.getsockname()[0] in addresses
    return False


class FrontDoor:
    """The public listener, asked as a visitor asks it."""

    def __init__(self, engine: Engine, nginx: Nginx, app: App) -> None:
        self.app = app
        self.probe: Probe = Direct()
        self.base = app.proxy.url or self._published(engine, nginx)
        if not self.base:
            self.probe = nearest(engine, nginx)
            direct = isinstance(self.probe, Direct) and nginx.address()
            self.base = f"http://{direct or '127.0.0.1'}:{app.proxy.listen}"

    def get(self, path: str, timeout: float) -> Answer:
        """One visitor's request."""
        return self.probe.get(self.base, path, self.app.server_name, timeout)

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
