"""A shop: one app behind an nginx of its own, deployed and looked at from outside."""

from __future__ import annotations

import copy
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

import httpx
from docker.errors import NotFound

from flows.deploy import deploy, rollback
from tasks.bluegreen.app import App, parse
from tasks.bluegreen.model import Report
from tests.lab.images import PROXY
from tests.lab.plain import PLAIN
from tests.lab.visitors import KINDS, Visitors

NUMBERS = itertools.count(1)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Shop:
    """One app and its proxy; names carry this process's id, so that test runs don't meet.

    Args:
        api: a client of the engine.
        address: where the front door is.
    """

    def __init__(self, api: Any, address: str = "127.0.0.1") -> None:
        self.api = api
        self.name = f"nonstop-lab-{os.getpid()}-{next(NUMBERS)}"
        self.proxy = f"{self.name}-proxy"
        self.port = free_port()
        self.url = f"http://{address}:{self.port}"
        self.host = "localhost"
        self.description: dict[str, Any] = {
            "name": self.name,
            "image": "nonstop-lab-hello:v1",
            "pull_policy": "never",
            "port": 3000,
            "environment": {"MESSAGE": "app{{ replica }},{{ tag }}"},
            "health": {"path": "/health", "interval": 0.1, "checks": 2, "deadline": 20},
            "verify": {"bake_time": 0, "interval": 0.1},
            "drain": {"limit": 4},
            "stop_grace_period": 3,
            "proxy": {
                "container": self.proxy,
                "image": PROXY,
                "publish": [f"{address}:{self.port}:80"],
                "network": f"nonstop-lab-{os.getpid()}",
            },
        }

    def described(self, **changes: Any) -> dict[str, Any]:
        """The app's description with changes; those of a mapping are laid over it."""
        described = dict(self.description)
        for name, value in changes.items():
            below = described.get(name)
            described[name] = below | value if isinstance(below, dict) else value
        return described

    def app(self, release: str = "", **changes: Any) -> App:
        """The App whose replicas answer as `release` in their header X-Release."""
        described = self.described(**changes)
        if release:
            described["environment"] = described["environment"] | {"RELEASE": release}
        return parse(described)

    def deploy(self, release: str = "", **changes: Any) -> Report:
        """Deploys `release`, also one that serves, and makes sure that the report is what is.

        `force=False` among the changes: what serves is not deployed again.
        """
        force = bool(changes.pop("force", True))
        report: Report = deploy(app=self.app(release, **changes), wait=10, force=force)
        assert report.release == self.live()
        return report

    def rollback(self, to: int | None = None) -> Report:
        """Rolls back, and makes sure that the report is what is."""
        report: Report = rollback(self.name, to)
        assert report.release == self.live()
        return report

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        """One visitor's answer on a fresh connection."""
        headers = {"Host": self.host} | headers
        return httpx.get(
            self.url + path, headers=headers, timeout=10, trust_env=False, verify=PLAIN
        )

    def releases(self) -> set[str]:
        """What replicas call themselves, over enough answers to meet each of them."""
        return {self.get().headers.get("X-Release", "") for _ in range(8)}

    def live(self) -> int | None:
        """The one release that answers at the front door; None: nobody does."""
        said = {self.get().headers.get("X-Nonstop-Release") for _ in range(8)}
        assert len(said) == 1, f"several releases answer: {said}"
        number = said.pop()
        return int(number) if number else None

    def visitors(
        self, *, rate: float = 150, download: float = 2, kinds: Iterable[str] = KINDS
    ) -> Visitors:
        """Visitors of the front door while entered; gives what they heard."""
        return Visitors(self.url, self.host, rate=rate, download=download, kinds=kinds)

    def containers(self) -> dict[str, str]:
        """State of each of the app's containers by name, without the shop's own name."""
        listed = self.api.containers(all=True, filters={"label": f"nonstop.app={self.name}"})
        return {
            entry["Names"][0].lstrip("/").removeprefix(f"{self.name}-"): entry["State"]
            for entry in listed
        }

    def container(self, name: str) -> str:
        """The full name of a container like `2-1`: release, replica."""
        return f"{self.name}-{name}"

    def pid(self, container: str) -> int:
        """Process id of a container's first process; 0 when it is not running."""
        pid: int = self.api.inspect_container(container)["State"]["Pid"]
        return pid

    def crash(self, container: str) -> None:
        """Its first process was killed, as by the kernel, and Docker has started it again."""
        pid = self.pid(container)
        assert pid, f"{container} does not run"
        os.kill(pid, signal.SIGKILL)
        while self.pid(container) in (0, pid):
            time.sleep(0.05)

    def exec(self, command: str) -> str:
        """What a shell in the proxy prints."""
        made = self.api.exec_create(self.proxy, ["sh", "-c", command])
        printed: bytes = self.api.exec_start(made["Id"])
        return printed.decode()

    def sites(self) -> str:
        """Every file of the sites directory that nginx reads, as names and contents."""
        command, heard = "cd /etc/nginx/nonstop/sites && grep . *.conf | sort", ""
        while not heard.endswith("--all"):  # under load the engine may lose what an exec printed
            heard = self.exec(f"{command}; echo --all").rstrip()
        return heard.removesuffix("--all")

    def close(self) -> None:
        """Nothing of the shop is left but the network that it shares with others."""
        for entry in self.api.containers(all=True):
            labels = entry["Labels"] or {}
            if self.name in (labels.get("nonstop.app"), labels.get("nonstop.lab.shop")) or (
                labels.get("nonstop.proxy") == self.proxy
            ):
                self.api.remove_container(entry["Id"], force=True, v=True)
        for volume in self.api.volumes()["Volumes"] or []:
            if volume["Name"].startswith(f"{self.name}-"):
                self.api.remove_volume(volume["Name"])
        for network in self.api.networks():
            if network["Name"].startswith(f"{self.name}-"):
                self.api.remove_network(network["Id"])


class Standing:
    """A shop whose release 1, called one, serves, and nothing else is there: one for many tests.

    Args:
        api: a client of the engine.
    """

    def __init__(self, api: Any) -> None:
        self._api = api
        self._shop: Shop | None = None
        self._as_made: tuple[object, ...] = ()

    def shop(self) -> Shop:
        """The one of before if it is as it was made, else another."""
        if self._shop is None or self._is(self._shop) != self._as_made:
            self.close()
            self._shop = Shop(self._api)
            self._shop.deploy("one")
            self._as_made = self._is(self._shop)
        return self._shop

    def close(self) -> None:
        """Nothing of it is left."""
        if self._shop is not None:
            self._shop.close()
            self._shop = None

    def _is(self, shop: Shop) -> tuple[object, ...]:
        """What its description, containers, proxy and sites are."""
        listed = self._api.containers(all=True, filters={"label": f"nonstop.app={shop.name}"})
        try:
            proxy = self._api.inspect_container(shop.proxy)
            sites = shop.sites() if proxy["State"]["Running"] else ""
        except NotFound:
            proxy, sites = {}, ""
        return (
            copy.deepcopy(shop.description),
            {(entry["Id"], entry["State"]) for entry in listed},
            (proxy.get("Id"), proxy.get("State")),
            sites,
        )
