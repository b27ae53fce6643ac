"""What changed while a run waited or after it lost its lock is never undone by it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prefect import flow

from flows.recover import recover
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import LockLost, StateUnknown
from tasks.bluegreen.model import Plan
from tasks.bluegreen.plan import plan_deploy
from tasks.observe import observe
from tasks.roll_back import roll_back
from tests.lab.command import Command
from tests.lab.long import LONG
from tests.lab.shop import Shop


def planned(shop: Shop, run: str = "of a run that lost its lock") -> Plan:
    """What a run plans now."""
    app = shop.app()
    return plan_deploy(app, observe.fn(shop.name, app.proxy), "nobody any more", run)


@flow(name="late", validate_parameters=False)
def late(plan: Plan) -> None:
    """The way back of a run that lost its lock."""
    roll_back(plan, "it was too late")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("deploys", [1, LONG(2)])
def test_a_run_that_lost_its_lock_leaves_another_run_s_release_alone(
    shop: Shop, first: bool, deploys: int
) -> None:
    if first:  # its proxy is there, and no release
        shop.deploy("none")
        shop.exec(f"rm /etc/nginx/nonstop/sites/nonstop-{shop.name}.conf")
        shop.api.kill(shop.proxy, "HUP")
        for name in shop.containers():
            shop.api.remove_container(shop.container(name), force=True)
    else:
        shop.deploy("one")
    time.sleep(0.5)
    plan = planned(shop)
    assert (plan.blue is None) == first
    for number in range(deploys):
        shop.deploy(f"another {number}")
    before = shop.containers(), shop.sites()
    with (
        shop.visitors(kinds=["fresh"]) as heard,
        pytest.raises(StateUnknown, match="which another run made live meanwhile; it was left"),
    ):
        late(plan)
    assert heard.lost == 0, heard.losses
    assert (shop.containers(), shop.sites()) == before
    assert shop.releases() == {f"another {deploys - 1}"}


def test_a_replica_of_another_run_is_not_replaced(shop: Shop) -> None:
    shop.deploy("one")
    plan = planned(shop)
    shop.deploy("two")
    before = shop.containers()
    with Engine() as engine, pytest.raises(LockLost, match=r"another run made .*-2-1 meanwhile"):
        engine.create(plan, 1, image_id="nonstop-lab-hello:v1", environment={})
    assert shop.containers() == before


def test_a_rollback_that_waited_does_not_put_the_bad_release_back(command: Command) -> None:
    shop = command.shop
    shop.deploy("good", environment={"START_SECONDS": "12"})  # so has its rollback
    shop.deploy("bad")
    first = command.start("rollback", shop.name)
    while "3-1" not in shop.containers():
        assert first.poll() is None
        time.sleep(0.1)
    _, err = command.run("rollback", shop.name, "--wait", "60", code=2)
    assert first.wait(120) == 0
    said = " ".join(err.split())
    assert f"Another run made release 3 of {shop.name} live meanwhile, instead of 2" in said
    assert shop.releases() == {"good"}


def test_a_replica_that_stood_still_for_a_while_is_no_reason_to_go_back(shop: Shop) -> None:
    shop.deploy("one")
    shop.deploy("two")
    with shop.visitors(kinds=["fresh"]):
        shop.api.stop(shop.container("2-1"), timeout=1)
        time.sleep(8)
    (report,) = recover(shop.name)
    assert report.release == 2, report
    assert shop.releases() == {"two"}
    assert set(shop.containers()) == {"1-1", "1-2", "2-1", "2-2"}


def test_a_blue_that_crashes_again_and_again_is_stopped(shop: Shop, tmp_path: Path) -> None:
    shop.deploy(
        "one",
        volumes=[f"{tmp_path}:/world"],
        command=["sh", "-c", "test ! -e /world/broken && exec python3 -u /hello.py"],
    )
    (tmp_path / "broken").touch()
    for name in ("1-1", "1-2"):
        shop.api.restart(shop.container(name), timeout=1)
    while set(shop.containers().values()) != {"restarting"}:
        time.sleep(0.02)
    shop.deploy("two")
    assert set(shop.containers()) == {"1-1", "1-2", "2-1", "2-2"}
    for _ in range(30):  # longer than Docker waits before it starts one again
        assert {shop.containers()[name] for name in ("1-1", "1-2")} == {"exited"}
        time.sleep(0.1)
