"""`nonstop up`: everything for one host in one command, supervised, and stopped without a loss."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.command import BIN
from tests.lab.host import Host
from tests.lab.shop import Shop

RECOVER = {"name": "recover", "entrypoint": "tests.lab.recovering.recover"}
SLOW = {"verify": {"bake_time": 60}}


@pytest.fixture(scope="module")
def shop(api: Any) -> Iterator[Shop]:
    made = Shop(api)
    yield made
    made.close()


@pytest.fixture(scope="module")
def host(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host of which every test may expect that it runs."""
    made = Host(shop, tmp_path_factory.mktemp("host"))
    made.describe(RECOVER)
    with made:
        yield made


def test_runs_that_the_api_is_asked_for_deploy_and_roll_back(host: Host) -> None:
    for flow, parameters, text in (
        ("deploy", {}, ",v1"),
        ("deploy", {"image": "hello:v2"}, ",v2"),
        ("rollback", {}, ",v1"),
    ):
        assert host.ended(host.ask(flow, **parameters)) == "Completed"
        assert host.shop.get().text.endswith(text)


def test_a_second_one_on_the_same_host_says_so(host: Host) -> None:
    already = len(host.said())
    assert host.start().wait(60) == 2
    said = f"`nonstop up` runs on this host already, as process {host.process.pid}."
    assert said in " ".join(host.said()[already:].split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server", "127.0.0.1:{port}"), "cannot listen on 127.0.0.1:{port} (Address already"),
        (("--server", "203.0.113.1:4200"), "cannot listen on 203.0.113.1:4200 (Cannot assign"),
        (("--server", "4200"), "'4200' is not an address like 127.0.0.1:4200."),
        (("--file", "no.yaml"), "There is no inventory no.yaml"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: []")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = refused(tmp_path, *(option.format(port=port) for option in options))
    assert words.format(port=port) in " ".join(done.stderr.split())


def test_an_entry_that_cannot_be_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    entry = "{name: shop, entrypoint: flows.deploy.deplo, parameters: {}}"
    (tmp_path / "prefect.yaml").write_text(f"deployments: [{entry}]")
    said = " ".join(refused(tmp_path).stderr.split())
    assert "prefect.yaml: deployment shop (flows.deploy.deplo) cannot be run: " in said


def refused(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `nonstop up` that was refused has said."""
    done = subprocess.run(
        [BIN / "nonstop", "up", *options],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": "", "PREFECT_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_runner_that_dies_is_started_again_and_its_deploy_goes_on(host: Host) -> None:
    already = len(host.said())
    run = begun(host, "deploy", verify={"bake_time": 6})
    os.kill(host.child("flows.runner"), signal.SIGKILL)
    host.hears("nonstop  the runner ended by signal SIGKILL; it starts again in 1 s", 10, already)
    host.hears(" runs deploy/", 30, already)
    assert host.ended(run) == "Completed"
    assert host.ended(host.ask("recover", "recover")) == "Completed"


def test_a_server_that_dies_is_started_again_and_its_deploy_goes_on(host: Host) -> None:
    runner, already = host.child("flows.runner"), len(host.said())
    run = begun(host, "deploy", verify={"bake_time": 6})
    os.kill(host.child("prefect server"), signal.SIGKILL)
    host.hears("nonstop  the server ended by signal SIGKILL; it starts again in 1 s", 10, already)
    assert host.ended(run) == "Completed"
    assert host.child("flows.runner") == runner
    assert host.ended(cancelled_run(host)) == "Cancelled"  # the runner still hears of it


def test_a_run_that_is_cancelled_in_the_ui_goes_back_and_was_never_crashed(host: Host) -> None:
    before = served(host.shop)
    run = cancelled_run(host)
    assert host.ended(run) == "Cancelled"
    assert served(host.shop) == before
    names = [state["name"] for state in host.get(f"flow_run_states/?flow_run_id={run}")]
    assert names[-3:] == ["Running", "Cancelling", "Cancelled"]


def cancelled_run(host: Host) -> str:
    """A run that was cancelled while it watched its green."""
    run = begun(host, "deploy", **SLOW)
    host.cancel(run)
    return run


def begun(host: Host, flow: str, **changes: Any) -> str:
    """A run that has cut over and watches its green."""
    before = served(host.shop)
    run = host.ask(flow, app=host.shop.described(**changes))
    host.until(lambda: served(host.shop) != before, 60, "the cutover")
    return run


def served(shop: Shop) -> str | None:
    """The release that answered once."""
    number: str | None = shop.get().headers.get("X-Nonstop-Release")
    return number
