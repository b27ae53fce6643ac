"""A run dies, in every way and at every step; no visitor notices, and the next run ends clean."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    STORIES,
    Deaths,
    ensure_clean,
)
from tests.lab.long import LONG
from tests.lab.served import Served, until
from tests.lab.server import Server
from tests.lab.shop import Shop, free_port
from tests.lab.tally import Case

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
def deaths(
    command: Command, tmp_path: Path, count: Callable[[list[Case]], None]
) -> Iterator[Deaths]:
    made = Deaths(command, tmp_path)
    yield made
    count(made.cases)


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


def first_deploy_dies(command: Command, folder: Path, **told: Any) -> Case:
    """A first deploy that is killed; recover and a deploy straight on what is left end clean."""
    shop, place = command.shop, folder / "told"
    shop.close()  # the one before it
    command.environment |= {"MORTAL": str(place), "PYTHONPATH": str(ROOT)}
    place.write_text(json.dumps({"way": "SIGKILL", **told}))
    process = command.start("deploy", shop.name, program=MORTAL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL or "effect" in told, err
    began = time.monotonic()
    recover(shop.name, wait=20)
    seconds = time.monotonic() - began
    left = shop.containers()
    assert left in ({}, {"1-1": "running", "1-2": "running"}), told
    if left:
        ensure_clean(shop)
    shop.deploy("again")
    assert shop.releases() == {"again"}
    ensure_clean(shop)
    who = "green" if left else "nobody"
    return Case(f"first deploy {told}", process.returncode, seconds, 0, 0, 0, who)


def test_a_first_deploy_that_dies_leaves_nothing(
    command: Command, tmp_path: Path, count: Callable[[list[Case]], None]
) -> None:
    (nothing,) = recover(command.shop.name)
    assert "nothing to put right, this engine has no release of it" in nothing.message
    moments = (("start-green", "after"), ("reload-nginx", "after"))
    count([first_deploy_dies(command, tmp_path, step=s, when=when) for s, when in moments])


@pytest.mark.long
def test_at_every_change_of_the_world_a_first_deploy_may_be_killed(
    command: Command, tmp_path: Path, count: Callable[[list[Case]], None]
) -> None:
    """Each change is fatal in turn, until a deploy ends before it makes so many."""
    cases = []
    for when in ("before", "after"):
        for effect in itertools.count(1):
            case = first_deploy_dies(command, tmp_path, effect=effect, when=when)
            if case.code == 0:
                break
            cases.append(case)
    count(cases)
    assert len(cases) >= 16


def test_whenever_a_run_dies_the_release_before_or_after_it_serves(deaths: Deaths) -> None:
    """A selection: every step once; ways, sides of the step and what comes next in turn."""
    ways = itertools.cycle(("SIGKILL", "SIGTERM", "exception", "SIGKILL", "task time-out"))
    sides = itertools.cycle(("after", "before", "before", "after", "after"))
    thens = itertools.cycle(("recover", "recover", "deploy"))
    for step, way, when, then in zip(STEPS_OF_A_DEPLOY, ways, sides, thens, strict=False):
        case = deaths.die(way, step=step, when=when, then=then)
        assert case.seconds < 15 or then == "deploy", case


def test_a_deploy_that_takes_too_long_goes_back(deaths: Deaths) -> None:
    case = deaths.die("flow time-out", step="verify-traffic", when="before")
    assert case.code == 1, case


@pytest.mark.parametrize(
    ("story", "step", "when"),
    [
        LONG("bad deploy", "roll-back", "before"),
        LONG("rollback", "reload-nginx", "after"),
        ("recover", "put-right", "after"),
    ],
)
def test_on_the_way_back_a_run_may_die_too(
    deaths: Deaths, story: str, step: str, when: str
) -> None:
    case = deaths.die("SIGKILL", story=story, step=step, when=when)
    assert case.code == -signal.SIGKILL, case
    assert case.seconds < 15, case


@pytest.mark.long
@pytest.mark.parametrize(
    ("way", "then"), [*((way, "recover") for way in WAYS), ("SIGKILL", "deploy")]
)
def test_at_every_step_a_run_may_die(deaths: Deaths, way: str, then: str) -> None:
    for step, when in MOMENTS:
        case = deaths.die(way, step=step, when=when, then=then)
        assert case.seconds < 15 or then == "deploy", case


@pytest.mark.long
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("then", ["recover", "deploy"])
def test_at_every_change_of_the_world_a_run_may_be_killed(
    deaths: Deaths, tmp_path: Path, story: str, then: str
) -> None:
    """Not a list by hand: what a run asks of the engine is recorded, then each is fatal."""
    record = tmp_path / "record"
    deaths.die("nothing", story=story, effect=0, record=str(record))
    effects = record.read_text().split()
    assert len(effects) >= (2 if story == "recover" else 8)
    for effect, when in itertools.product(range(1, len(effects) + 1), ("before", "after")):
        case = deaths.die("SIGKILL", story=story, effect=effect, when=when, then=then)
        assert case.code == -signal.SIGKILL, (effects[effect - 1], case)
        assert case.seconds < 15 or then == "deploy", (effects[effect - 1], case)


def goes_away(deaths: Deaths, folder: Path, way: str, steps: Iterable[str]) -> None:
    """A Prefect server of its own goes away at each of these steps; the deploys end well."""
    for step in steps:
        (folder / step).mkdir()
        with server_of_its_own(folder / step) as (server, group):
            deaths.command.environment["PREFECT_API_URL"] = f"{server.address}/api"
            target = server.database if way == "database locked" else group
            case = deaths.die(way, step=step, when="before", target=str(target))
        assert case.code == 0, case


def test_a_deploy_ends_well_when_prefect_s_database_is_locked(
    deaths: Deaths, tmp_path: Path
) -> None:
    goes_away(deaths, tmp_path, "database locked", ["reload-nginx"])


@pytest.mark.long
@pytest.mark.parametrize("way", AWAY)
def test_a_deploy_ends_well_whenever_its_prefect_server_goes_away(
    deaths: Deaths, tmp_path: Path, way: str
) -> None:
    goes_away(deaths, tmp_path, way, STEPS_OF_A_DEPLOY)


@pytest.fixture
def mortals(deaths: Deaths, tmp_path: Path) -> Iterator[Served]:
    """A runner whose runs die as told; it does not."""
    deaths.told.write_text(json.dumps({"way": "nothing", "when": "before"}))
    with Served(tmp_path, "tests.lab.mortal", {"MORTAL": str(deaths.told)}) as made:
        yield made


def under_a_runner(deaths: Deaths, served: Served, way: str, step: str, when: str) -> None:
    """A run that dies; without anybody's help all is clean within 15 s."""
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
    who = "blue" if shop.live() == before else "green"
    figures = seconds, heard.requests, heard.lost, heard.silence
    deaths.cases.append(Case(name, 0, *figures, who))
    assert heard.lost == 0, heard.losses
    assert seconds < 15, name
    ensure_clean(shop)
    if way == "cancel":
        kept = shop.live() == before
        assert ended["state"]["message"].startswith("Cancelled.") or not kept, ended["state"]


def test_a_run_that_dies_under_a_runner_is_recovered_by_itself(
    deaths: Deaths, mortals: Served
) -> None:
    under_a_runner(deaths, mortals, "SIGKILL", "reload-nginx", "after")


@pytest.mark.long
@pytest.mark.parametrize("way", ["cancel", "SIGKILL"])
def test_at_every_step_a_run_under_a_runner_may_die(
    deaths: Deaths, mortals: Served, way: str
) -> None:
    for step, when in MOMENTS:
        under_a_runner(deaths, mortals, way, step, when)
