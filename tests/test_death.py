"""A run dies, in every way and at every step; no visitor notices, and the next run ends clean."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.recover import recover
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab.command import Command
from tests.lab.deaths import (
    KINDS,
    MOMENTS,
    MORTAL,
    ROOT,
    STEPS_OF_A_DEPLOY,
    Deaths,
    ensure_clean,
)
from tests.lab.served import Served, until
from tests.lab.server import Server
from tests.lab.shop import Shop, free_port

WAYS = ("SIGKILL", "SIGTERM", "exception", "task time-out", "flow time-out")
AWAY = ("server killed", "server silent", "database locked")


@contextmanager
def server_of_its_own(folder: Path) -> Iterator[tuple[Server, int]]:
    """A Prefect server that may be hurt, and its process group."""
    server = Server(folder / "prefect", free_port())
    group = server.start()
    try:
        yield server, group
    finally:
        os.killpg(group, signal.SIGKILL)


@pytest.fixture
def deaths(command: Command, tmp_path: Path) -> Iterator[Deaths]:
    made = Deaths(command, tmp_path)
    yield made
    made.tell()


def test_recovery_changes_nothing_where_nothing_is_wrong(shop: Shop) -> None:
    shop.deploy("one")
    shop.deploy("two")
    before = shop.containers(), shop.sites(), shop.exec("ps ax -o pid,args 2>&1 | grep nginx:")
    began = time.monotonic()
    (report,) = recover(shop.name)
    assert time.monotonic() - began < 2
    assert report.message == f"{shop.name}: nothing to put right, release 2 serves."
    after = shop.containers(), shop.sites(), shop.exec("ps ax -o pid,args 2>&1 | grep nginx:")
    assert after == before


def test_a_first_deploy_that_dies_leaves_nothing(command: Command, tmp_path: Path) -> None:
    shop, told = command.shop, tmp_path / "told"
    (nothing,) = recover(shop.name)
    assert "nothing to put right, this engine has no release of it" in nothing.message
    command.environment |= {"MORTAL": str(told), "PYTHONPATH": str(ROOT)}
    for step, serves in (("start-green", False), ("reload-nginx", True)):
        told.write_text(json.dumps({"way": "SIGKILL", "step": step, "when": "after"}))
        process = command.start("deploy", shop.name, program=MORTAL)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
        recover(shop.name, wait=20)
        assert set(shop.containers()) == ({"1-1", "1-2"} if serves else set())
    assert shop.live() == 1
    ensure_clean(shop)


def test_whenever_a_run_dies_the_release_before_or_after_it_serves(deaths: Deaths) -> None:
    """A selection: every step once, the ways and the sides of the step in turn."""
    ways = itertools.cycle(("SIGKILL", "SIGTERM", "SIGKILL", "task time-out"))
    sides = itertools.cycle(("after", "before", "before", "after", "after"))
    for step, way, when in zip(STEPS_OF_A_DEPLOY, ways, sides, strict=False):
        case = deaths.die(way, step=step, when=when)
        assert case.seconds < 15, case


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_at_every_step_a_run_may_die(deaths: Deaths, way: str) -> None:
    for step, when in MOMENTS:
        case = deaths.die(way, step=step, when=when)
        assert case.seconds < 15, case


@pytest.mark.long
def test_at_every_change_of_the_world_a_run_may_be_killed(deaths: Deaths, tmp_path: Path) -> None:
    """Not a list by hand: what a deploy asks of the engine is recorded, then each is fatal."""
    record = tmp_path / "record"
    deaths.die("nothing", effect=0, record=str(record))
    effects = record.read_text().split()
    assert len(effects) >= 8
    for effect, when in itertools.product(range(1, len(effects) + 1), ("before", "after")):
        case = deaths.die("SIGKILL", effect=effect, when=when)
        assert case.code == -signal.SIGKILL, (effects[effect - 1], case)
        assert case.seconds < 15, (effects[effect - 1], case)


@pytest.mark.long
@pytest.mark.parametrize("way", AWAY)
def test_a_deploy_ends_well_whenever_its_prefect_server_goes_away(
    deaths: Deaths, tmp_path: Path, way: str
) -> None:
    for step in STEPS_OF_A_DEPLOY:
        folder = tmp_path / step
        folder.mkdir()
        with server_of_its_own(folder) as (server, group):
            deaths.command.environment["PREFECT_API_URL"] = f"{server.address}/api"
            target = server.database if way == "database locked" else group
            case = deaths.die(way, step=step, when="before", target=str(target))
        assert case.code == 0, case


@pytest.fixture
def mortals(deaths: Deaths, tmp_path: Path) -> Iterator[Served]:
    """A runner whose runs die as told; it does not."""
    deaths.told.write_text(json.dumps({"way": "nothing", "when": "before"}))
    with Served(tmp_path, "tests.lab.mortal", {"MORTAL": str(deaths.told)}) as made:
        yield made


def under_a_runner(deaths: Deaths, served: Served, way: str, step: str, when: str) -> float:
    """Seconds from a death until all is clean, without anybody's help."""
    shop = deaths.shop
    place = deaths.told.with_name("struck")
    deaths.told.write_text(json.dumps({"way": way, "step": step, "when": when, "mark": str(place)}))
    before = shop.live()
    with shop.visitors(rate=100, kinds=KINDS) as heard:
        name = f"{way} {when} {step}"  # no other release's, or nothing would be deployed
        app = shop.described(environment={"RELEASE": name}, verify={"bake_time": 1})
        run = served.start("deploy", app=app)
        ended = until(run, "Cancelled" if way == "cancel" else "Crashed")
        deadline = time.monotonic() + 60
        while plan_recovery(observe.fn(shop.name)).needed:
            assert time.monotonic() < deadline, "nobody recovered it"
            time.sleep(0.2)
        seconds = time.time() - place.stat().st_mtime
    place.unlink()
    assert heard.lost == 0, heard.losses
    ensure_clean(shop)
    if way == "cancel":
        kept = shop.live() == before
        assert ended["state"]["message"].startswith("Cancelled.") or not kept, ended["state"]
    return seconds


def test_a_run_that_is_killed_under_a_runner_is_recovered_by_itself(
    deaths: Deaths, mortals: Served
) -> None:
    assert under_a_runner(deaths, mortals, "SIGKILL", "reload-nginx", "after") < 15


@pytest.mark.long
@pytest.mark.parametrize("way", ["cancel", "SIGKILL"])
def test_at_every_step_a_run_under_a_runner_may_die(
    deaths: Deaths, mortals: Served, way: str
) -> None:
    seconds = [under_a_runner(deaths, mortals, way, step, when) for step, when in MOMENTS]
    print(
        f"{len(seconds)} times {way} under a runner: clean after "
        f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (worst)"
    )
    assert max(seconds) < 15
