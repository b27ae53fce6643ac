"""What recover finds it finishes or undoes, and it says honestly how that ended."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.deploy import refused_after
from flows.recover import recover
from tasks.bluegreen.errors import Failed, Refused
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab import history
from tests.lab.command import Command
from tests.lab.deaths import MORTAL, ROOT, ensure_clean
from tests.lab.long import LONG
from tests.lab.nginx import OwnNginx, until_it_answers
from tests.lab.shop import Shop, free_port

BAD = {"verify": {"status": [418]}}  # it is healthy, and every visitor's page is wrong


def dies(command: Command, folder: Path, *arguments: str, **told: Any) -> None:
    """A command that is killed where it is told."""
    place = folder / "told"
    place.write_text(json.dumps({"way": "SIGKILL", **told}))
    command.environment |= {"MORTAL": str(place), "PYTHONPATH": str(ROOT)}
    process = command.start(*arguments, program=MORTAL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    del command.environment["MORTAL"]


def dies_after_its_cutover(command: Command, folder: Path, **changes: Any) -> None:
    """A deploy of `two` that is killed when it has cut over; the inventory is as before."""
    command.describe(environment={"RELEASE": "two"}, **changes)
    dies(command, folder, "deploy", command.shop.name, step="reload-nginx", when="after")
    assert command.shop.releases() == {"two"}
    command.describe()


def fails_when(folder: Path) -> dict[str, Any]:
    """An app that is unhealthy as soon as there is a file `broken` in the folder."""
    check = {"test": "test ! -e /world/broken", "interval": "0.5s", "retries": 1}
    return {"volumes": [f"{folder}:/world"], "healthcheck": check, "health": {"deadline": 4}}


def test_from_a_bad_release_recovery_goes_back_to_the_warm_one(
    serving: Shop, command: Command, tmp_path: Path
) -> None:
    with serving.visitors(kinds=["get", "fresh", "post"]) as heard:
        dies_after_its_cutover(command, tmp_path, **BAD)
        out, _ = command.run("recover", serving.name, "--wait", "20")
    assert heard.lost == 0, heard.losses
    assert out.startswith(f"{serving.name}: put right, release 1 serves. Release 2 was not good: ")
    assert "answers status 200" in out
    assert serving.releases() == {"one"}
    assert set(serving.containers()) == {"1-1", "1-2"}
    ensure_clean(serving)
    (run, *_) = history.runs(serving.name)
    assert (run["name"], run["state_name"]) == (f"recover {serving.name}", "Completed")
    assert run["state"]["message"] == out.strip()
    assert "Release 2 was not good" in history.report(serving.name)


def test_a_rollback_that_is_asked_for_meanwhile_is_what_recovery_did_already(
    serving: Shop, command: Command, tmp_path: Path
) -> None:
    dies_after_its_cutover(command, tmp_path, **BAD)
    out, _ = command.run("rollback", serving.name, "--wait", "20")
    assert "the run that made release 2 live had died, so that was taken back" in out
    assert serving.releases() == {"one"}
    ensure_clean(serving)


def test_a_run_that_is_refused_after_a_recovery_does_not_say_that_it_touched_nothing(
    command: Command, tmp_path: Path
) -> None:
    shop = command.shop
    shop.deploy("one")
    clean = observe.fn(shop.name)
    dies_after_its_cutover(command, tmp_path)
    left = observe.fn(shop.name)
    command.run("recover", shop.name, "--wait", "20")
    for before, kind, words in (
        (clean, Refused, "No. Nothing was touched."),
        (left, Failed, "No. What a run that died had left was put right before that."),
    ):
        with pytest.raises(kind, match=f"^{words}$"), refused_after(before):
            raise Refused("No. Nothing was touched.")


def test_from_a_bad_release_recovery_goes_back_to_the_kept_one(shop: Shop, tmp_path: Path) -> None:
    shop.deploy("one")
    shop.deploy("two", **fails_when(tmp_path))
    (tmp_path / "broken").touch()
    with shop.visitors(kinds=["get", "fresh"]) as heard:
        shop.api.stop(shop.container("2-1"), timeout=3)
        (report,) = recover(shop.name)
    assert heard.lost == 0, heard.losses
    assert (report.release, report.changed) == (1, True)
    assert shop.releases() == {"one"}
    ensure_clean(shop)


def test_a_bad_release_without_another_stays_and_a_person_is_asked(
    command: Command, tmp_path: Path
) -> None:
    shop = command.shop
    shop.deploy("one", **fails_when(tmp_path))
    (tmp_path / "broken").touch()
    shop.api.stop(shop.container("1-1"), timeout=3)
    _, err = command.run("recover", shop.name, code=3)
    said = " ".join(err.split())
    assert f"Release 1 of {shop.name} serves and is not good" in said
    assert "there is no other to go back to: deploy a good one" in said
    assert shop.containers() == {"1-1": "running", "1-2": "running"}
    assert shop.releases() == {"one"}
    state = history.runs(shop.name)[0]["state"]
    assert (state["type"], state["name"]) == ("FAILED", "Unknown")
    assert state["message"] in said
    assert history.report(shop.name).startswith(f"# {shop.name}: unknown\n")
    shop.deploy("two")
    assert shop.releases() == {"two"}


@pytest.mark.parametrize("way", ["exception", LONG("task time-out")])
def test_a_recovery_that_ends_unexpectedly_is_unknown(
    command: Command, tmp_path: Path, way: str
) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.deploy("two")
    shop.api.start(shop.container("1-1"))  # as a run that died before its teardown leaves it
    told = {"way": way, "step": "put-right", "when": "before"}
    (tmp_path / "told").write_text(json.dumps(told))
    command.environment |= {"MORTAL": str(tmp_path / "told"), "PYTHONPATH": str(ROOT)}
    process = command.start("recover", shop.name, program=MORTAL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert "Traceback" not in err
    assert "may be half put right, so a person has to look" in " ".join(err.split())
    assert history.runs(shop.name)[0]["state_name"] == "Unknown"
    (report,) = recover(shop.name)
    assert report.message == f"{shop.name}: put right, release 2 serves."
    ensure_clean(shop)


def test_a_recovery_of_what_runs_without_its_proxy_is_refused(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.api.stop(shop.proxy, timeout=3)
    _, err = command.run("recover", shop.name, code=2)
    assert f"The proxy {shop.proxy} is exited: start it" in " ".join(err.split())
    assert history.runs(shop.name)[0]["state_name"] == "Refused"
    for name in shop.containers():
        shop.api.stop(shop.container(name), timeout=3)
    out, _ = command.run("recover", shop.name)  # somebody stopped all of it
    assert f"nothing to put right, neither {shop.proxy} nor a replica runs." in out


@pytest.mark.parametrize("own", [True, LONG(False)])
def test_a_proxy_that_lost_its_network_is_connected_again(command: Command, own: bool) -> None:
    """As an nginx of one's own that Compose made anew."""
    shop = command.shop
    if own:
        OwnNginx(shop)
        command.describe()
    shop.deploy("one")
    network = shop.description["proxy"]["network"]
    shop.api.disconnect_container_from_network(shop.proxy, network)
    with suppress(httpx.TransportError):  # while nginx still waits, or when its port went, too
        assert shop.get().is_server_error
    found = json.loads(command.run("doctor", shop.name, "--json", code=2)[0])
    (problem,) = [f for f in found if f["level"] == "problem"]
    assert f"is not on network {network} any more, so that visitors do not" in problem["what"]
    assert problem["remedy"] == f"`nonstop recover {shop.name}`"
    out, err = command.run("recover", shop.name)
    assert f"connect the proxy to network {network}, which it is not on" in " ".join(err.split())
    assert out == f"{shop.name}: put right, release 1 serves.\n"
    until_it_answers(shop)
    assert shop.releases() == {"one"}
    out, _ = command.run("recover", shop.name)
    assert out == f"{shop.name}: nothing to put right, release 1 serves.\n"


MOVES = [  # where the run dies, and whether recovery finishes the move
    LONG({"step": "start-green", "when": "after"}, False),
    ({"effect": "hup", "when": "before"}, True),  # the site is written and not loaded
    LONG({"step": "reload-nginx", "when": "after"}, True),
]


@pytest.fixture
def there(shop: Shop) -> Iterator[Shop]:
    """The same shop behind another proxy."""
    made = copy.copy(shop)
    made.proxy, port = f"{shop.proxy}-2", free_port()
    made.url = f"http://127.0.0.1:{port}"
    made.description = shop.described(
        proxy={"container": made.proxy, "publish": [f"127.0.0.1:{port}:80"]}
    )
    yield made
    shop.api.remove_container(made.proxy, force=True)
    shop.api.remove_volume(f"{made.proxy}-sites", force=True)


def ensure_in_order(*places: Shop) -> None:
    """From outside: what serves behind one of the proxies runs, and nothing else does."""
    lives = {number for place in places if (number := place.live())}
    states = places[0].containers()
    running = {name for name, state in states.items() if state == "running"}
    assert running == {f"{number}-{index}" for number in lives for index in (1, 2)}
    for place in places:
        assert not plan_recovery(observe.fn(place.name, place.app().proxy)).needed


@pytest.mark.parametrize("then", ["recover", LONG("there"), LONG("here")])
@pytest.mark.parametrize(("told", "finished"), MOVES)
def test_a_run_that_dies_while_its_app_moves_to_another_proxy_is_finished_or_undone(
    command: Command, there: Shop, tmp_path: Path, told: dict[str, Any], finished: bool, then: str
) -> None:
    here = command.shop
    here.deploy("one")
    command.describe(environment={"RELEASE": "two"}, proxy=there.description["proxy"])
    with here.visitors(kinds=["get", "fresh", "post"]) as heard:
        dies(command, tmp_path, "deploy", here.name, **told)
        if then == "recover":
            command.run("recover", here.name, "--wait", "20")
        else:
            (there if then == "there" else here).deploy("three")
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) <= {"one", "three"}
    ensure_in_order(here, there)
    assert here.releases() == {"three" if then == "here" else "one"}
    if then == "there":
        assert there.releases() == {"three"}
    elif finished:
        assert there.releases() == {"two"}
    else:
        assert there.live() is None
