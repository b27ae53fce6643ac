"""The world breaks in the middle of a deploy; afterwards one release serves and all is clean."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.bluegreen.errors import Unavailable
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab import history
from tests.lab.command import Command
from tests.lab.deaths import MORTAL, STEPS_OF_A_DEPLOY, Deaths, ensure_clean
from tests.lab.images import PROXY
from tests.lab.machine import Machine
from tests.lab.needs import cannot_run
from tests.lab.nginx import until_it_answers
from tests.lab.registry import Registry
from tests.lab.shop import Shop
from tests.lab.tally import Case

SETTLED = 11.0  # seconds; Docker waits twice as long after each crash within 10 s of the one before


class World:
    """A machine with a shop, and everything that can break on it."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.shop = Shop(machine.api, machine.address)
        self.shop.description["proxy"]["image"] = PROXY
        command = Command(self.shop, folder)
        command.describe()
        self.deaths = Deaths(command, folder)

    def crash(self, *containers: str) -> None:
        """They are killed, as by the kernel; Docker starts them again."""
        for container in containers:
            if self.shop.pid(container):
                self.shop.crash(container)

    def has_run_for(self, seconds: float, container: str) -> None:
        """That long since its start."""
        state = self.machine.api.inspect_container(container)["State"]
        up = time.time() - datetime.fromisoformat(state["StartedAt"]).timestamp()
        time.sleep(max(0.0, seconds - up))

    def proxy_crashes(self) -> None:
        """The only proxy dies; Docker starts it again."""
        self.has_run_for(SETTLED, self.shop.proxy)
        self.crash(self.shop.proxy)
        until_it_answers(self.shop)

    def replicas(self, newest: bool) -> list[str]:
        """Names of the running replicas of the newest release, or of the one that serves."""
        number = self.shop.live()
        running = [n for n, state in self.shop.containers().items() if state == "running"]
        wanted = max(int(n.partition("-")[0]) for n in running) if newest else number
        return [self.shop.container(n) for n in running if n.startswith(f"{wanted}-")]

    def a_replica_of_green_crashes(self) -> None:
        """One replica of the newest release dies."""
        self.crash(self.replicas(newest=True)[0])

    def all_of_blue_crash(self) -> None:
        """Every replica of what serves dies."""
        self.crash(*self.replicas(newest=False))
        until_it_answers(self.shop)

    def engine_restarts(self) -> None:
        """The engine is restarted; what it stops, it starts again."""
        self.machine.restart()
        until_it_answers(self.shop)

    def engine_crashes(self) -> None:
        """The engine is killed and started."""
        self.machine.restart(signal.SIGKILL)
        until_it_answers(self.shop)

    def engine_is_silent(self, seconds: float = 4) -> None:
        """The engine does not answer for some seconds."""
        self.machine.process.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, self.machine.process.send_signal, (signal.SIGCONT,)).start()

    def engine_is_silent_for_long(self) -> None:
        """It does not answer for longer than calls to it and the lock last."""
        self.engine_is_silent(40)

    def client_hangs(self) -> None:
        """Every question to nginx in its container is never answered."""
        self.shop.exec(
            "mv /usr/bin/curl /usr/bin/curl.real; printf '#!/bin/sh\\nexec sleep 1000\\n' "
            "> /usr/bin/curl; chmod +x /usr/bin/curl"
        )

    def client_is_back(self) -> None:
        """They are, again."""
        self.shop.exec("mv /usr/bin/curl.real /usr/bin/curl; pkill -x sleep")

    def host_reboots(self) -> None:
        """Everything dies at once, the deploy too."""
        self.deaths.process.kill()
        self.machine.reboot()
        until_it_answers(self.shop, 60)


@pytest.fixture
def make_world(
    prefect: None,
    api: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: Callable[[list[Case]], None],
) -> Iterator[Callable[..., World]]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        cannot_run("an engine of its own needs root and dockerd: run it where `make test` is root")
    machines: list[Machine] = []
    worlds: list[World] = []

    def make(live_restore: bool, disk: str = "") -> World:
        machine = Machine(tmp_path, live_restore=live_restore, disk=disk)
        machines.append(machine.__enter__())
        machine.load(api, "nonstop-lab-hello:v1", "nonstop-lab-hello:v2", PROXY)
        monkeypatch.setenv("DOCKER_HOST", machine.url)
        worlds.append(World(machine, tmp_path))
        return worlds[-1]

    yield make
    count([case for world in worlds for case in world.deaths.cases])
    for machine in machines:
        machine.__exit__(None, None, None)


def break_at(world: World, breaks: str, moments: list[tuple[str, str]], silence: float) -> None:
    """At each moment of a deploy the world breaks; nobody serves for so many seconds at most."""
    if breaks == "engine_is_silent_for_long":
        world.deaths.command.environment["DOCKER_CLIENT_TIMEOUT"] = "5"
    for step, when in moments:
        case = world.deaths.die(breaks, getattr(world, breaks), silence, step=step, when=when)
        assert breaks != "host_reboots" or case.code == -signal.SIGKILL, case


BREAKS = [  # what breaks, whether containers survive the engine, seconds for which nobody may serve
    ("engine_restarts", True, 5),
    ("engine_crashes", True, 5),
    ("engine_is_silent", True, 0),
    ("engine_is_silent_for_long", True, 45),  # nginx waits for it to take its access log
    ("engine_restarts", False, 40),
    ("proxy_crashes", True, 10),
    ("a_replica_of_green_crashes", True, 5),
    ("all_of_blue_crash", True, 10),
    ("host_reboots", False, 30),
]


def test_after_a_reboot_in_the_middle_of_a_deploy_one_release_serves(
    make_world: Callable[..., World],
) -> None:
    break_at(make_world(False), "host_reboots", [("verify-traffic", "before")], 30)


def test_a_recovery_of_all_apps_goes_on_where_one_cannot_be_put_right(
    make_world: Callable[..., World],
) -> None:
    world = make_world(True)
    command, first = world.deaths.command, world.shop
    second = Shop(world.machine.api, world.machine.address)
    for shop in (first, second):
        shop.deploy("one")
        shop.deploy("two")
        for name in shop.containers():  # as a run that died before its teardown leaves them
            shop.api.start(shop.container(name))
    told = {"way": "exception", "step": "put-right", "when": "before"}  # once
    world.deaths.told.write_text(json.dumps(told))
    process = command.start("recover", program=MORTAL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    said = " ".join(err.split())
    left, right = sorted((first, second), key=lambda shop: shop.name)
    assert f"{left.name}: Struck: struck. What a dead run left may be half put right" in said
    assert f"{right.name}: put right, release {right.live()} serves." in said
    assert "Traceback" not in err
    ensure_clean(right)
    assert plan_recovery(observe.fn(left.name)).needed
    found = history.ask("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": ["recover"]}}})
    assert [run["state_name"] for run in found] == ["Unknown"]
    out, _ = command.run("recover")
    assert f"{left.name}: put right, release {left.live()} serves." in out
    assert f"{right.name}: nothing to put right, release {right.live()} serves." in out
    for shop in (first, second):
        ensure_clean(shop)


@pytest.mark.long
@pytest.mark.parametrize(("breaks", "live_restore", "silence"), BREAKS)
def test_whatever_breaks_at_whatever_step_one_release_serves_afterwards(
    make_world: Callable[..., World], breaks: str, live_restore: bool, silence: float
) -> None:
    moments = [(step, "before") for step in STEPS_OF_A_DEPLOY] + [("teardown-blue", "after")]
    break_at(make_world(live_restore), breaks, moments, silence)


@pytest.mark.long
def test_a_disk_that_is_full_is_refused_or_rolled_back(make_world: Callable[..., World]) -> None:
    world = make_world(True, disk="1200m")
    machine, deaths, shop = world.machine, world.deaths, world.shop
    for step, when in (("start-green", "before"), ("reload-nginx", "before")):
        case = deaths.die("disk full", machine.fill, mend=machine.free, step=step, when=when)
        assert case.code == 1
    before = shop.containers(), shop.sites()
    machine.fill()
    try:
        with pytest.raises(Unavailable, match=r"0 MiB are free .* needs about 256 MiB") as caught:
            shop.deploy("two")
        assert caught.value.outcome == "refused"
        found = json.loads(deaths.command.run("doctor", shop.name, "--json", code=2)[0])
        assert not [f for f in found if "live-restore" in f["what"]]
        (disk,) = [f for f in found if f["level"] == "problem"]
        assert "0 MiB are free on the engine's disk" in disk["what"]
        assert "docker system df" in disk["what"]
    finally:
        machine.free()
    assert (shop.containers(), shop.sites()) == before
    shop.deploy("two")
    assert shop.releases() == {"two"}


@pytest.mark.long
def test_a_disk_that_gets_full_by_the_pull_is_refused_and_nothing_is_left(
    make_world: Callable[..., World],
) -> None:
    world = make_world(True, disk="2400m")
    machine, shop = world.machine, world.shop
    with Registry(machine.api, machine=machine) as registry:
        image = registry.push("large", size=700)
        there = set(machine.api.images(quiet=True))
        before = shop.containers(), shop.sites()
        machine.fill(leave=650)
        try:
            with pytest.raises(Unavailable, match="disk was full before") as caught:
                shop.deploy("large", image=image, pull_policy="always")
            assert caught.value.outcome == "refused"
            assert shutil.disk_usage(machine.data).free >> 20 >= 640
        finally:
            machine.free()
        assert set(machine.api.images(quiet=True)) == there
        assert (shop.containers(), shop.sites()) == before
        shop.deploy("large", image=image, pull_policy="always")
        assert shop.releases() == {"large"}
        shop.close()  # else the registry could not have its images removed


@pytest.mark.long
def test_a_command_that_never_ends_ends_a_deploy_in_bounded_time(
    make_world: Callable[..., World],
) -> None:
    world = make_world(True)
    for step, code in (("reload-nginx", 3), ("teardown-blue", 0)):
        began = time.monotonic()
        case = world.deaths.die(
            "hangs", world.client_hangs, mend=world.client_is_back, step=step, when="before"
        )
        assert case.code == code
        assert time.monotonic() - began < 240
