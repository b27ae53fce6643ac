"""The nonstop command in a process of its own, with an inventory of a shop's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect.settings import PREFECT_API_URL

from flows.inventory import ENTRYPOINT
from tests.lab.shop import Shop

BIN = Path(sys.executable).parent
Process = subprocess.Popen[str]


class Command:
    """`nonstop` with an inventory of the shop's own."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self.shop, self.file = shop, folder / "prefect.yaml"
        self.environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}

    def describe(self, **changes: Any) -> None:
        """The inventory has the shop with these changes."""
        app = self.shop.described(**changes)
        entry = {"name": "shop", "entrypoint": ENTRYPOINT, "parameters": {"app": app}}
        self.file.write_text(yaml.safe_dump({"deployments": [entry]}))

    def start(
        self, *arguments: str, program: tuple[str | Path, ...] = (BIN / "nonstop",)
    ) -> Process:
        """The running command, in the inventory's directory."""
        return subprocess.Popen(
            [*program, *arguments],
            cwd=self.file.parent,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # as a shell starts it
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Standard output and standard error of a command that ends with `code`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        assert "Traceback" not in out + err
        return out, err


@contextmanager
def deploying(command: Command, bake: float = 60) -> Iterator[Process]:
    """A deploy that has cut over and is being watched, for `bake` seconds."""
    command.describe(verify={"bake_time": bake})
    process = command.start("deploy", command.shop.name)
    try:
        deadline = time.monotonic() + 60
        while command.shop.get().headers.get("X-Nonstop-Release") != "2":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
