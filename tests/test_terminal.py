"""A deploy whose terminal, pipe or log's disk is gone goes on, or back, all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from tests.lab.command import BIN, Command
from tests.lab.host import Host
from tests.lab.long import LONG
from tests.lab.shop import Shop


def hang_up(command: Command) -> int:
    """Exit code of a deploy that is being watched when its terminal is closed."""
    ours, terminal = os.openpty()
    process = started(command, lambda: os.login_tty(terminal), stdin=None)
    os.close(terminal)
    until_live(command, process)
    os.close(ours)
    return process.wait(120)


def interrupt_with_its_reader(command: Command) -> int:
    """The same when Ctrl-C ends what reads its lines too, as `2>&1 | tee log` does."""
    process = started(command, stderr=subprocess.PIPE)
    until_live(command, process)
    assert process.stderr
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    return process.wait(120)


def fail_on_a_full_disk(command: Command) -> int:
    """The same when the disk of its log is full, and green crashes."""
    with Path("/dev/full").open("w") as full:
        process = started(command, stderr=full)
    until_live(command, process)
    command.shop.api.kill(command.shop.container("2-1"))
    return process.wait(120)


def started(
    command: Command, enter: Callable[[], None] | None = None, bake: int = 60, **streams: Any
) -> subprocess.Popen[Any]:
    """A deploy with these standard streams that is watched for `bake` seconds."""
    command.describe(verify={"bake_time": bake}, restart="no")
    return subprocess.Popen(
        [BIN / "nonstop", "deploy", command.shop.name],
        cwd=command.file.parent,
        env=command.environment,
        preexec_fn=enter,
        **{"stdin": subprocess.DEVNULL} | streams,
    )


def until_live(command: Command, process: subprocess.Popen[Any]) -> None:
    """Release 2 serves and is watched."""
    deadline = time.monotonic() + 60
    while command.shop.get().headers.get("X-Nonstop-Release") != "2":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("happens", [hang_up, interrupt_with_its_reader, LONG(fail_on_a_full_disk)])
def test_a_deploy_that_nobody_reads_goes_back(
    serving: Shop, command: Command, happens: Callable[[Command], int]
) -> None:
    with serving.visitors(kinds=["get", "post"]) as heard:
        assert happens(command) == 1
    assert heard.lost == 0, heard.losses
    assert serving.live() == 1
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_deploy_that_nobody_reads_succeeds(command: Command) -> None:
    with Path("/dev/full").open("w") as full:
        process = started(command, bake=0, stderr=full)
    assert process.wait(90) == 0
    assert command.shop.live() == 1


def test_up_stops_in_order_when_its_terminal_is_closed(shop: Shop, tmp_path: Path) -> None:
    host = Host(shop, tmp_path, api=str(PREFECT_API_URL.value()))
    ours, terminal = os.openpty()
    host.process = subprocess.Popen(
        [BIN / "nonstop", "up", *host.options],
        cwd=host.folder,
        env=host.environment,
        preexec_fn=lambda: os.login_tty(terminal),
    )
    os.close(terminal)
    said = b""
    while b" runs deploy/" not in said:
        said += os.read(ours, 4096)
    below = host.children()
    os.close(ours)
    assert host.process.wait(120) == 0
    assert len(below) >= 2
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
