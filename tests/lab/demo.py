"""The tutorial's scenario for real: v1, v2 under load, a bad v3 that goes back by itself, v1 again.

`make demo` runs it. Everything that is shown is what a user's own commands print.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from flows.inventory import ENTRYPOINT
from tests.lab import engine
from tests.lab.__main__ import remove_things
from tests.lab.images import PROXY
from tests.lab.server import HOME, ensure_server
from tests.lab.shop import free_port
from tests.lab.visitors import Heard, Visitors

NAME = "nonstop-demo"
OUT = Console(highlight=False)


class Demo:
    """The scenario, step by step, and what visitors heard in each."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.before = Heard()
        self.table = Table("step", "seconds", "requests", "lost", "500s", "who served", box=None)

    def run(self) -> None:
        """Every step, and the table."""
        began = time.monotonic()
        remove_things(self.api, (NAME,))
        address = ensure_server(free_port())
        OUT.print(f"Prefect UI, with every run: [bold]{address}/runs[/]")
        OUT.print(
            f"the shop:                   [bold]{self.url}[/]  (both stay until `make clean`)"
        )
        self.environment = os.environ | {"PREFECT_API_URL": f"{address}/api"}
        self.inventory().write_text(yaml.safe_dump({"deployments": [self.deployment()]}))
        self.step("deploy v1", "deploy", NAME, "--image", "nonstop-lab-hello:v1")
        visitors = Visitors(self.url, rate=200, download=2)
        with visitors:
            self.step(
                "deploy v2", "deploy", NAME, "--image", "nonstop-lab-hello:v2", visitors=visitors
            )
            self.step(
                "deploy v3, bad for visitors",
                *("deploy", NAME, "--image", "nonstop-lab-hello:v3"),
                visitors=visitors,
                code=1,
            )
            self.step("back to v1 on request", "rollback", NAME, "--to", "1", visitors=visitors)
        OUT.print()
        OUT.print(self.table)
        lost = visitors.heard.lost - visitors.heard.errors["v3"]
        OUT.print(
            f"{visitors.heard.requests} requests by browsers, POSTs, downloads and a WebSocket, "
            f"{lost} lost; v3 answered {visitors.heard.errors['v3']} with 500 before it was gone. "
            f"All of it took {time.monotonic() - began:.0f} s."
        )
        if lost:
            sys.exit("\n".join(visitors.heard.losses))

    def step(
        self, title: str, *arguments: str, visitors: Visitors | None = None, code: int = 0
    ) -> None:
        """One command of the user's, and its line in the table."""
        OUT.print(f"\n[bold]$ nonstop {' '.join(arguments)}[/]")
        began = time.monotonic()
        file = ("--file", str(self.inventory())) if arguments[0] == "deploy" else ()
        done = subprocess.run(
            [str(Path(sys.executable).parent / "nonstop"), *arguments, *file],
            env=self.environment,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode != code:
            sys.exit(f"`nonstop {' '.join(arguments)}` ended with {done.returncode}, not {code}.")
        OUT.print(*sorted({httpx.get(self.url).text for _ in range(8)}), sep="\n", style="green")
        heard = visitors.so_far() if visitors else Heard()
        served = heard.releases - self.before.releases
        errors = sum((heard.errors - self.before.errors).values())
        self.table.add_row(
            title,
            f"{seconds:.1f}",
            str(heard.requests - self.before.requests),
            str(heard.lost - self.before.lost - errors),
            str(errors),
            ", ".join(f"{name} {count}" for name, count in sorted(served.items()))
            or next(iter(self.releases())),
        )
        self.before = heard

    def releases(self) -> Counter[str]:
        """Who answers at this moment."""
        return Counter(httpx.get(self.url).headers["X-Release"] for _ in range(4))

    @staticmethod
    def inventory() -> Path:
        """The demo's own prefect.yaml."""
        return HOME / "prefect.yaml"

    def deployment(self) -> dict[str, Any]:
        """The tutorial's app, watched and drained for as long as a demo has time."""
        app = {
            "name": NAME,
            "image": "nonstop-lab-hello:v1",
            "pull_policy": "missing",
            "port": 3000,
            "replicas": 2,
            "keep": 2,
            "environment": {"MESSAGE": "app{{ replica }},{{ tag }}"},
            "health": {"path": "/health", "interval": "200ms"},
            "verify": {"bake_time": "3s"},
            "drain": {"limit": "3s"},
            "proxy": {
                "container": f"{NAME}-proxy",
                "image": PROXY,
                "publish": [f"127.0.0.1:{self.port}:80"],
                "network": f"{NAME}-net",
            },
        }
        return {"name": NAME, "entrypoint": ENTRYPOINT, "parameters": {"app": app}}


if __name__ == "__main__":
    Demo(engine.ensure_engine()).run()
