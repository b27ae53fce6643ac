"""How long a deploy takes, against the bare engine calls for the same containers.

`make bench` runs it: floor and deploy in turn, medians of several runs, for 2 and 10 replicas. The
floor starts the containers in parallel, asks each until it is healthy, writes the site, reloads
nginx and waits until its workers have changed; it proves nothing and cleans nothing up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from flows.deploy import deploy
from tasks.bluegreen.model import Report
from tasks.bluegreen.plan import plan_deploy
from tasks.observe import observe
from tests.lab import engine, images
from tests.lab.server import prefect_of_its_own
from tests.lab.shop import Shop

OUT = Console(highlight=False, width=100)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came back."""
    began = time.monotonic()
    value = function()
    return time.monotonic() - began, value


class Floor:
    """The bare calls; the containers have the names and addresses that a deploy would give."""

    def __init__(self, shop: Shop, replicas: int) -> None:
        self.shop, self.replicas = shop, replicas
        self.made: list[str] = []
        self.client = httpx.Client(timeout=5, trust_env=False)

    def prepare(self) -> None:
        """What a plan knows: free addresses, and the site that serves now."""
        app = self.shop.app(replicas=self.replicas)
        plan = plan_deploy(app, observe.fn(app.name, app.proxy))
        self.addresses = plan.addresses
        self.site = plan.previous_site or ""

    def run(self) -> None:
        """Create and start side by side, ask until healthy, write, reload, wait for the workers."""
        with ThreadPoolExecutor(self.replicas) as pool:
            self.made = list(pool.map(self.start, range(self.replicas)))
            list(pool.map(self.ask_until_healthy, self.addresses))
        before = self.workers()
        self.shop.exec("cat /etc/nginx/nonstop/sites/*.conf > /tmp/site")
        self.shop.api.kill(self.shop.proxy, "HUP")
        while not (now := self.workers()) or now & before:
            time.sleep(0.02)

    def start(self, index: int) -> str:
        """One container, created and started."""
        api, network = self.shop.api, self.shop.description["proxy"]["network"]
        end = api.create_endpoint_config(ipv4_address=self.addresses[index])
        made: str = api.create_container(
            "nonstop-lab-hello:v1",
            host_config=api.create_host_config(network_mode=network),
            networking_config=api.create_networking_config({network: end}),
            labels={"nonstop.lab.shop": self.shop.name},
        )["Id"]
        api.start(made)
        return made

    def ask_until_healthy(self, address: str) -> None:
        """It answers as a healthy one."""
        while True:
            try:
                if self.client.get(f"http://{address}:3000/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.02)

    def workers(self) -> set[str]:
        """Ids of the workers that accept."""
        top = self.shop.api.top(self.shop.proxy, ps_args="-o pid,args")["Processes"]
        return {pid for pid, title in top if title.endswith("nginx: worker process")}

    def clean(self) -> None:
        """The floor's containers are gone."""
        self.client.close()
        for made in self.made:
            self.shop.api.remove_container(made, force=True)


def bench(shop: Shop, replicas: int, runs: int) -> dict[str, Any]:
    """Medians of `runs` floors and deploys in turn, in seconds."""
    changes: dict[str, Any] = {"replicas": replicas, "parallelism": 10, "health": {"checks": 1}}
    shop.deploy(**changes)
    floors, walls, reports = [], [], []
    for _ in range(runs):
        floor = Floor(shop, replicas)
        floor.prepare()
        floors.append(timed(floor.run)[0])
        floor.clean()
        wall, report = timed(lambda: deploy(app=shop.app(**changes), force=True))
        assert report.release == shop.live()
        walls.append(wall)
        reports.append(report)
    return {
        "replicas": replicas,
        "floor": statistics.median(floors),
        "deploy": statistics.median(
            wall - drained(report) for wall, report in zip(walls, reports, strict=True)
        ),
        "drain": statistics.median(drained(report) for report in reports),
        "prefect": statistics.median(
            wall - sum(step.seconds for step in report.steps)
            for wall, report in zip(walls, reports, strict=True)
        ),
        "steps": {
            step.name: statistics.median(report.steps[number].seconds for report in reports)
            for number, step in enumerate(reports[0].steps)
        },
    }


def drained(report: Report) -> float:
    """Seconds of a deploy's drain."""
    return report.drained.seconds if report.drained else 0.0


def allowed(figures: dict[str, Any]) -> float:
    """Seconds that a deploy may take without its drain."""
    return 1.3 * float(figures["floor"]) + 1


def main() -> None:
    """Prints the figures; as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each, medians are shown")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    api = engine.ensure_engine()
    images.ensure_images(api)
    figures = []
    with prefect_of_its_own():
        for replicas in (2, 10):
            shop = Shop(api)
            try:
                figures.append(bench(shop, replicas, given.runs))
            finally:
                shop.close()
    api.remove_network(shop.description["proxy"]["network"])
    if given.json:
        print(json.dumps(figures))
        return
    table = Table("seconds, medians", *(f"{f['replicas']} replicas" for f in figures), box=None)
    for name in ("floor", "deploy", "drain", "prefect"):
        table.add_row(name, *(f"{f[name]:.2f}" for f in figures))
    for name in figures[0]["steps"]:
        table.add_row(f"  {name}", *(f"{f['steps'][name]:.2f}" for f in figures))
    table.add_row("allowed: 1.3 floors + 1 s", *(f"{allowed(f):.2f}" for f in figures))
    OUT.print(table)
    if any(f["deploy"] > allowed(f) for f in figures):
        sys.exit("A deploy took longer than is allowed.")


if __name__ == "__main__":
    main()
