"""How soon each of the three doors lets a deploy begin and be live, under `nonstop up`.

`make bench` runs it. From the request on (of a schedule: from its time on): until the run says its
first line, until that line can be read through the API (what the UI shows), until the first line
of the deploy's own, and until visitors are served by the new release.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from flows.pushes.senders import SECRETS
from tests.lab import engine, images
from tests.lab.deliveries import JSON, standard
from tests.lab.host import Host
from tests.lab.shop import Shop

OUT = Console(highlight=False, width=100)
NAMES = ("first line", "it is seen", "first line of the deploy", "cutover")
SECRET = "latency-" + "s3cret" * 4


def by_schedule(host: Host, image: str) -> tuple[float, str]:
    """A run for a time to come, as a schedule makes it; that time, and the run."""
    at = time.time() + random.uniform(5, 7)
    return at, host.ask("deploy", at=at, image=image)


def by_the_ui(host: Host, image: str) -> tuple[float, str]:
    """A run as the UI's button asks for it; when, and the run."""
    time.sleep(random.uniform(0, 2))  # wherever the runner's clock is
    return time.time(), host.ask("deploy", image=image)


def by_webhook(host: Host, image: str) -> tuple[float, str]:
    """A run for a push of that image, told as any CI can; when, and the run."""
    time.sleep(random.uniform(0, 2))
    body = json.dumps({"image": image}).encode()
    headers = JSON | standard(body, SECRET, str(uuid.uuid4()))
    began = time.time()
    answer = httpx.post(f"{host.receiver}/webhooks/generic", content=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return began, answer.json()["runs"][0]["run"]


DOORS: dict[str, Callable[[Host, str], tuple[float, str]]] = {
    "schedule": by_schedule,
    "Prefect UI": by_the_ui,
    "webhook": by_webhook,
}


def once(host: Host, door: str) -> tuple[float, ...]:
    """Seconds from the request to each of NAMES."""
    before = host.shop.get()
    image = "nonstop-lab-hello:v1" if before.text.endswith("v2") else "nonstop-lab-hello:v2"
    began, run = DOORS[door](host, image)
    filter_ = {"flow_run_id": {"any_": [run]}}
    while not host.find("logs", logs=filter_):
        time.sleep(0.02)
    seen = time.time()
    while host.shop.get().headers["X-Nonstop-Release"] == before.headers["X-Nonstop-Release"]:
        assert time.time() - began < 60, host.said()
        time.sleep(0.02)
    cutover = time.time()
    assert host.ended(run) == "Completed"
    time.sleep(1)  # the last lines arrive
    lines = host.find("logs", logs=filter_, sort="TIMESTAMP_ASC")
    times = [(datetime.fromisoformat(line["timestamp"]).timestamp(), line) for line in lines]
    own = next(when for when, line in times if " replaces " in line["message"])
    return times[0][0] - began, seen - began, own - began, cutover - began


def main() -> None:
    """Prints medians, and the slowest cutover."""
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=7, help="of each door, medians are shown")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    api = engine.ensure_engine()
    images.ensure_images(api)
    shop = Shop(api)
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "generic").write_text(SECRET)
            os.environ[SECRETS] = folder
            made = Host(shop, Path(folder))
            made.describe(deploy_on_push="v*")
            with made as host:
                host.ended(host.ask("deploy"))
                figures = {
                    door: list(zip(*(once(host, door) for _ in range(given.runs)), strict=True))
                    for door in DOORS
                }
    finally:
        shop.close()
    api.remove_network(shop.description["proxy"]["network"])
    if given.json:
        print(json.dumps(figures))
        return
    table = Table("seconds from the request", *NAMES, "slowest cutover", box=None)
    for door, taken in figures.items():
        medians = (f"{statistics.median(seconds):.1f}" for seconds in taken)
        table.add_row(door, *medians, f"{max(taken[-1]):.1f}")
    OUT.print(table)
    print(f"medians of {given.runs}; load of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
