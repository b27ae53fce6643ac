"""One run per app at a time, and none that is dead stands in the way."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from flows.recover import recover
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup, Failed
from tasks.bluegreen.lock import Lock
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.plan import role
from tasks.bluegreen.scripts import PROXY_LOCK, TAKE
from tasks.bluegreen.shell import Shell
from tasks.observe import observe
from tests.lab.command import Command, deploying
from tests.lab.long import LONG
from tests.lab.nginx import OwnNginx
from tests.lab.relay import Relay
from tests.lab.shop import Shop, free_port


def test_a_second_run_says_who_holds_the_lock_and_touches_nothing(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    with deploying(command, bake=600) as first:  # eight commands take their time
        before = shop.containers(), shop.sites()
        _, err = command.run("deploy", shop.name, "--image", "nonstop-lab-hello:v2", code=2)
        assert f"process {first.pid}, since 20" in " ".join(err.split())
        assert "is being changed by run " in " ".join(err.split())
        command.run("rollback", shop.name, code=2)
        command.run("recover", shop.name)  # leaves it to that run
        for looks in ("status", "plan", "doctor"):
            said = " ".join(command.run(looks, shop.name)[0].split())
            assert "is being changed by run " in said
            assert f"process {first.pid}, since 20" in said
            assert "a run died" not in said
        assert (shop.containers(), shop.sites()) == before
        first.send_signal(signal.SIGINT)
        first.wait(120)
    assert shop.live() == 1


def test_a_recovery_keeps_nobody_out_where_nothing_is_wrong(serving: Shop) -> None:
    with (
        Engine() as engine,
        Lock(engine, Nginx(engine, serving.app().proxy), serving.name, "x", 0, print),
    ):
        (report,) = recover(serving.name)
    assert report.message == f"{serving.name}: nothing to put right, release 1 serves."


def test_a_run_with_another_proxy_is_kept_out_as_well(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    other = {"container": f"{shop.proxy}-2", "publish": [f"127.0.0.1:{free_port()}:80"]}
    try:
        with deploying(command) as first:
            before = shop.containers(), shop.sites()
            command.describe(proxy=other)
            _, err = command.run("deploy", shop.name, code=2)
            assert f"process {first.pid}, since 20" in " ".join(err.split())
            assert (shop.containers(), shop.sites()) == before
            first.send_signal(signal.SIGINT)
            first.wait(120)
        _, err = command.run("deploy", shop.name)  # and then it may move there
        assert f"behind the proxy {shop.proxy} and is left alone" in " ".join(err.split())
        assert shop.containers() == dict.fromkeys(("1-1", "1-2", "2-1", "2-2"), "running")
        (status,) = json.loads(command.run("status", shop.name, "--json")[0])
        roles = {one["number"]: one["role"] for one in status["releases"]}
        assert roles == {1: f"live behind {shop.proxy}", 2: "live"}
    finally:
        shop.api.remove_container(other["container"], force=True)
        shop.api.remove_volume(f"{other['container']}-sites", force=True)


def test_a_second_run_that_waits_comes_after_the_first(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    with shop.visitors() as heard, deploying(command) as first:
        command.describe()
        second = command.start(
            "deploy", shop.name, "--image", "nonstop-lab-hello:v2", "--wait", "100"
        )
        said = ""
        while f"process {first.pid}, since 20" not in " ".join(said.split()):
            assert second.poll() is None, said
            said += second.stderr.readline() if second.stderr else ""
        assert shop.live() == 2
        first.send_signal(signal.SIGINT)
        _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert heard.lost == 0, heard.losses
    assert shop.get().text.endswith(",v2")


def test_a_run_that_is_killed_does_not_block_the_next(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    with shop.visitors() as heard:
        with deploying(command) as first:
            first.kill()
            first.wait(10)
        command.describe()
        command.run("deploy", shop.name, "--image", "nonstop-lab-hello:v2")  # waits for nobody
    assert heard.lost == 0, heard.losses
    assert shop.live() == 3
    running = {name for name, state in shop.containers().items() if state == "running"}
    assert running == {"3-1", "3-2"}


@pytest.mark.parametrize("well", [True, LONG(False)])
def test_a_run_whose_connection_broke_is_in_nobody_s_way_after_its_end(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    """The engine goes on holding its end, as it does when it is restarted with live-restore."""
    shop.deploy("one")
    with Relay(tmp_path) as relay:
        monkeypatch.setenv("DOCKER_HOST", relay.url)
        with (
            Engine() as engine,
            suppress(Failed),
            Lock(engine, Nginx(engine, shop.app().proxy), shop.name, "broken", 0, print),
        ):
            relay.cut(heard=False)
            relay.mend()
            assert observe.fn(shop.name).holder == "broken"
            if not well:
                raise Failed("It went wrong.")
        seen = observe.fn(shop.name)
        assert seen.holder == ""
        assert seen.left == (() if well else ("broken",))


def test_a_run_that_lost_its_lock_does_not_switch(serving: Shop, command: Command) -> None:
    before = serving.sites()
    command.describe(environment={"HEALTHY_AFTER": "8"})
    process = command.start("deploy", serving.name)
    while len((seen := observe.fn(serving.name)).releases) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    assert [role(seen, release) for release in seen.releases] == ["live", "green"]
    assert f"process {process.pid}, since 20" in seen.holder
    for row in serving.api.top(serving.proxy, ps_args="-o pid,args")["Processes"]:
        if row[1] == "head -c 1":
            os.kill(int(row[0]), signal.SIGKILL)
    while (seen := observe.fn(serving.name)).holder:
        assert process.poll() is None
    assert [seen.died(release) for release in seen.releases] == [False, True]
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "is no longer this run's (now: free)" in " ".join(err.split())
    assert "Release 1 serves, as before." in " ".join(err.split())
    assert serving.sites() == before
    assert serving.live() == 1
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_two_apps_behind_one_nginx_deploy_at_once_and_nobody_notices(
    command: Command, tmp_path: Path
) -> None:
    first = command.shop
    OwnNginx(first)
    second = Shop(first.api)
    try:
        second.proxy, second.url, second.host = first.proxy, first.url, "second.example.com"
        second.description |= {"proxy": first.description["proxy"], "hosts": [second.host]}
        (tmp_path / "second").mkdir()
        other = Command(second, tmp_path / "second")
        command.describe()
        other.describe()
        for shop in (first, second):
            shop.deploy("one")
        with first.visitors(kinds=["get", "post"]) as heard, second.visitors() as others:
            for _ in range(3):
                runs = [
                    command.start("deploy", first.name, "--force"),
                    other.start("deploy", second.name, "--force"),
                ]
                for run in runs:
                    _, err = run.communicate(timeout=120)
                    assert run.returncode == 0, err
        assert (heard.lost, others.lost) == (0, 0), heard.losses + others.losses
        assert (first.live(), second.live()) == (4, 4)
    finally:
        second.proxy = ""
        second.close()


def test_a_site_is_changed_only_while_no_other_site_of_the_proxy_is(shop: Shop) -> None:
    shop.deploy("one")
    with Engine() as engine:
        nginx = Nginx(engine, shop.app().proxy)
        look = nginx.look(shop.name)
        entered: list[float] = []

        def change() -> None:
            with (
                Engine() as another,
                Nginx(another, nginx.proxy).installed(shop.name, look.site, "b", unlocked=True),
            ):
                entered.append(time.monotonic())

        thread = threading.Thread(target=change)
        with nginx.installed(shop.name, look.site, "a", unlocked=True):
            thread.start()
            time.sleep(2)
            left = time.monotonic()
        thread.join(30)
    assert entered
    assert entered[0] >= left


def test_who_says_nothing_when_its_turn_has_come_keeps_nobody_out(serving: Shop) -> None:
    """As when its host has lost power: the engine may not hear of that for hours."""
    with Engine() as engine:
        nginx = Nginx(engine, serving.app().proxy)
        with closing(Shell(nginx.id)) as silent:
            take(silent, "another run")
            began = time.monotonic()
            with nginx.installed(serving.name, nginx.look(serving.name).site, "a", unlocked=True):
                assert time.monotonic() - began < 30
            assert not silent.answers()


@pytest.mark.long
def test_who_says_nothing_for_a_minute_after_it_wrote_keeps_nobody_out(serving: Shop) -> None:
    with Engine() as engine:
        nginx = Nginx(engine, serving.app().proxy)
        site = nginx.look(serving.name).site
        with nginx.installed(serving.name, site, "another run", unlocked=True):
            began = time.monotonic()
            with Nginx(engine, nginx.proxy).installed(serving.name, site, "a", unlocked=True):
                assert 50 < time.monotonic() - began < 70


def test_a_second_try_to_write_a_site_keeps_what_is_loaded_beside_it(serving: Shop) -> None:
    with Engine() as engine:
        nginx = Nginx(engine, serving.app().proxy)
        loaded = nginx.look(serving.name).site
        for _ in range(2):
            with nginx.installed(serving.name, f"{loaded}# new", "a", unlocked=True):
                assert nginx.look(serving.name).before == loaded
        with nginx.installed(serving.name, loaded, "a", unlocked=True):
            assert nginx.look(serving.name).site == loaded


def test_why_no_site_can_be_changed_is_said(shop: Shop) -> None:
    shop.deploy("one")
    before = shop.sites()
    shop.exec(f"rm {PROXY_LOCK} && mkdir {PROXY_LOCK}")
    why = f"in {shop.proxy}, which has to be writable, could not be locked: .*s a directory"
    with (
        Engine() as engine,
        pytest.raises(EngineHiccup, match=why),
        Nginx(engine, shop.app().proxy).installed(shop.name, "# another", "a", unlocked=True),
    ):
        pytest.fail("it was not locked")
    assert shop.sites() == before


def test_what_a_change_still_writes_when_it_was_cut_short_comes_before_the_next(
    serving: Shop,
) -> None:
    with Engine() as engine:
        nginx = Nginx(engine, serving.app().proxy)
        site = nginx.look(serving.name).site
        with closing(Shell(nginx.id)) as slow:
            take(slow, "a")
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                slow.run("(sleep 4)", {}, 1, own=True)
            with nginx.installed(serving.name, site, "a", unlocked=True):
                assert time.monotonic() - began > 3.5


def take(shell: Shell, holder: str) -> None:
    """The shell has the turn."""
    taken = shell.run(TAKE, {"PROXY_LOCK": PROXY_LOCK, "HOLDER": holder}, 10, own=True)
    assert taken
    assert taken.text == "taken\n"


def test_a_change_that_was_interrupted_in_its_queue_writes_nothing(shop: Shop) -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    shop.deploy("one")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Engine() as engine:
            nginx = Nginx(engine, shop.app().proxy)
            site = nginx.look(shop.name).site
            with nginx.installed(shop.name, site, "a", unlocked=True):
                signal.setitimer(signal.ITIMER_REAL, 1)
                with (
                    pytest.raises(Interrupted),
                    nginx.installed(shop.name, "# late", "b", unlocked=True),
                ):
                    pytest.fail("two changes at once")
            time.sleep(1)
            assert nginx.look(shop.name).site == site
    finally:
        signal.signal(signal.SIGALRM, before)
