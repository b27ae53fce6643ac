"""`python -m tests.lab up` sets the lab up, `clean` removes it, and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docker.errors import APIError, NotFound

from tests.lab import engine, images, server
from tests.lab.machine import sweep

NAMES = ("nonstop-lab-", "nonstop-demo")  # how everything of tests, bench and demo is called


def up() -> None:
    """An engine answers and has the lab's images."""
    images.ensure_images(engine.ensure_engine())


def clean() -> None:
    """Containers, volumes, networks and images of the lab are gone, and its engine has ended."""
    server.stop_server()
    api: Any = engine.connect()
    if api is not None:
        remove_things(api)
        images.remove_images(api)
    engine.stop()
    for place in Path("/run").glob("nonstop-lab-[0-9]*"):  # of tests that were killed
        sweep(place.name)


def remove_things(api: Any, prefixes: tuple[str, ...] = NAMES) -> None:
    """Containers, networks and volumes of tests, demo and bench are gone; images stay."""
    for container in api.containers(all=True):
        labels, name = container["Labels"] or {}, container["Names"][0].lstrip("/")
        names = (name, labels.get("nonstop.app", ""), labels.get("nonstop.proxy", ""))
        if any(name.startswith(prefixes) for name in names):
            api.remove_container(container["Id"], force=True, v=True)
    for network in api.networks():
        if network["Name"].startswith(prefixes):
            api.remove_network(network["Id"])
    for volume in api.volumes()["Volumes"] or []:
        if volume["Name"].startswith(prefixes):
            try:
                api.remove_volume(volume["Name"])
            except (NotFound, APIError) as error:
                engine.tell(f"volume {volume['Name']} stays: {error}")


if __name__ == "__main__":
    commands = {"up": up, "clean": clean}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit("usage: python -m tests.lab up|clean")
    commands[sys.argv[1]]()
