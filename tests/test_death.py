"""A run dies, in every way and at every step; no visitor notices, and the next run ends clean."""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flows.recover import recover
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab.command import Command
from tests.lab.mortal import STEPS
from tests.lab.server import Server
from tests.lab.shop import Shop, free_port

ROOT = Path(__file__).parents[1]
MORTAL = (sys.executable, "-m", "tests.lab.mortal")
STEPS_OF_A_DEPLOY = [name for name in STEPS if name not in ("roll-back", "put-right")]
MOMENTS = list(itertools.product(STEPS_OF_A_DEPLOY, ("before", "after")))
WAYS = ("SIGKILL", "SIGTERM", "exception", "task time-out", "flow time-out")
AWAY = ("server killed", "server silent", "database locked")
KINDS = ("get", "fresh", "post")


class Case(NamedTuple):
    """What became of one death."""

    what: str
    code: int
    seconds: float  # from the death until all is clean
    requests: int
    lost: int


class Deaths:
    """Deploys that die, one after the other, of one shop."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.shop = command, command.shop
        self.told = folder / "told"
        self.command.environment |= {"MORTAL": str(self.told), "PYTHONPATH": str(ROOT)}
        self.cases: list[Case] = []
        self.shop.deploy("zero")

    def die(self, way: str, code: int | None = None, **told: Any) -> Case:
        """One deploy that dies as told; then recovery, on its own, and a look from outside."""
        shop, before = self.shop, self.shop.live()
        number = len(self.cases) + 1
        self.told.write_text(json.dumps({"way": way, "when": "before", **told}))
        self.command.describe(environment={"RELEASE": f"{number}"}, verify={"bake_time": 1})
        with shop.visitors(rate=100, kinds=KINDS) as heard:
            process = self.command.start("deploy", shop.name, program=MORTAL)
            try:
                _, err = process.communicate(timeout=120)
            finally:
                process.kill()
            ended = time.monotonic()
            recover(shop.name, wait=20)
            seconds = time.monotonic() - ended
        case = Case(f"{way} {told}", process.returncode, seconds, heard.requests, heard.lost)
        self.cases.append(case)
        assert heard.lost == 0, (case, heard.losses, err)
        assert set(heard.releases) <= {f"{number}", *self.releases()}, (case, heard.releases)
        assert "Traceback" not in err or way == "SIGKILL", err
        ensure_clean(shop)
        if process.returncode == 0:
            assert shop.releases() == {f"{number}"}, (case, err)
        elif process.returncode == 1:
            assert shop.live() == before or "Cleanup is pending" in err, (case, err)
        else:
            assert process.returncode == -signal.SIGKILL, (case, err)
        return case

    def releases(self) -> set[str]:
        """What the live release and those before it call themselves."""
        return {"zero", *(str(number) for number in range(1, len(self.cases) + 1))}

    def tell(self) -> None:
        """The figures, for whoever runs pytest with -s."""
        seconds = [case.seconds for case in self.cases]
        print(
            f"\n{len(self.cases)} deaths, {sum(c.requests for c in self.cases)} requests, "
            f"{sum(c.lost for c in self.cases)} lost; clean after {statistics.median(seconds):.1f} "
            f"s (median), {max(seconds):.1f} s (worst)"
        )


def ensure_clean(shop: Shop) -> None:
    """From outside: one release serves, runs alone, and nothing is left to be put right."""
    number = shop.live()
    assert number is not None
    running = {name for name, state in shop.containers().items() if state == "running"}
    assert running == {f"{number}-1", f"{number}-2"}
    assert len(shop.containers()) <= 4
    assert not plan_recovery(observe.fn(shop.name)).needed
    assert "successful" in shop.exec("nginx -t -c /etc/nginx/nonstop/nginx.conf 2>&1")
    files = shop.exec("cd /etc/nginx/nonstop/sites && find . -type f | sort").split()
    assert set(files) <= {f"./nonstop-{shop.name}.conf", f"./.nonstop-{shop.name}.conf.before"}


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
    for number, (step, when) in enumerate(MOMENTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with server_of_its_own(folder) as (server, group):
            deaths.command.environment["PREFECT_API_URL"] = f"{server.address}/api"
            target = server.database if way == "database locked" else group
            case = deaths.die(way, step=step, when=when, target=str(target))
        assert case.code == 0, case
