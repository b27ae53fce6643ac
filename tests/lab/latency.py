"""How long a run that the UI or the API is asked for takes to begin, under `nonstop up`.

`make bench` runs it. From the request on: until the run's process says its first line, until that
line can be read through the API (what the UI shows), until the first line of the deploy's own, and
until visitors are served by the new release.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.lab import engine, images
from tests.lab.host import Host
from tests.lab.shop import Shop

OUT = Console(highlight=False, width=100)
NAMES = ("first line", "it is seen", "first line of the deploy", "cutover")


def once(host: Host) -> tuple[float, ...]:
    """Seconds from the request to each of NAMES."""
    before = host.shop.get().headers.get("X-Nonstop-Release")
    time.sleep(random.uniform(0, 2))  # wherever the runner's clock is
    began = time.time()
    run = host.ask("deploy")
    filter_ = {"flow_run_id": {"any_": [run]}}
    while not host.find("logs", logs=filter_):
        time.sleep(0.02)
    seen = time.time()
    while host.shop.get().headers.get("X-Nonstop-Release") == before:
        time.sleep(0.02)
    cutover = time.time()
    host.ended(run)
    time.sleep(1)  # the last lines arrive
    lines = host.find("logs", logs=filter_, sort="TIMESTAMP_ASC")
    times = [(datetime.fromisoformat(line["timestamp"]).timestamp(), line) for line in lines]
    own = next(when for when, line in times if " replaces " in line["message"])
    return times[0][0] - began, seen - began, own - began, cutover - began


def main() -> None:
    """Prints medians and the slowest."""
    options = argparse.ArgumentParser()
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    api = engine.ensure_engine()
    images.ensure_images(api)
    shop = Shop(api)
    try:
        with tempfile.TemporaryDirectory() as folder, Host(shop, Path(folder)) as host:
            host.ended(host.ask("deploy"))
            figures = list(zip(*(once(host) for _ in range(given.runs)), strict=True))
    finally:
        shop.close()
    api.remove_network(shop.description["proxy"]["network"])
    if given.json:
        print(json.dumps(dict(zip(NAMES, figures, strict=True))))
        return
    table = Table(f"seconds from the request, {given.runs} runs", "median", "slowest", box=None)
    for name, taken in zip(NAMES, figures, strict=True):
        table.add_row(name, f"{statistics.median(taken):.1f}", f"{max(taken):.1f}")
    OUT.print(table)


if __name__ == "__main__":
    main()
