"""Runs that a server's runner makes: cancelled, postponed, scheduled for later."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from flows.automations import SILENCE
from flows.pushes.senders import SECRETS
from flows.running import STOPPED
from tasks.bluegreen.app import parse
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.lock import Lock
from tasks.bluegreen.nginx import Nginx
from tasks.locked import LONGEST_WAIT
from tests.lab import history
from tests.lab.clock import closed, minute
from tests.lab.command import Command
from tests.lab.deliveries import JSON, standard
from tests.lab.host import Host
from tests.lab.served import Served, cancel, until
from tests.lab.shop import Shop

SECRET = "doors-" + "s3cret" * 4


def scheduled(app: str) -> list[dict[str, Any]]:
    """The runs of an app that wait for their time."""
    body = {
        "flow_runs": {"tags": {"all_": [f"app:{app}"]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    }
    found: list[dict[str, Any]] = history.ask("POST", "/flow_runs/filter", body)
    return found


def test_a_cancel_in_the_ui_goes_back_and_ends_as_cancelled(shop: Shop, served: Served) -> None:
    shop.deploy("one")
    with shop.visitors(kinds=["get", "post"]) as heard:
        app = shop.described(image="nonstop-lab-hello:v2", verify={"bake_time": 60})
        run = served.start("deploy", app=app)
        while shop.get().headers["X-Nonstop-Release"] != "2":
            until(run, "Running", "Scheduled", "Late", "Pending")
        cancel(run)
        ended = until(run, "Cancelled")
    assert heard.lost == 0, heard.losses
    said = "Cancelled. Release 1 serves, as before."
    assert (ended["state_type"], ended["state"]["message"]) == ("CANCELLED", said)
    assert shop.live() == 1
    assert set(shop.containers()) == {"1-1", "1-2"}
    assert f"roll-back {shop.name}-2" in history.until_steps(ended, "roll-back")
    told = history.report(shop.name)
    assert told.startswith(f"# {shop.name}: cancelled\n\n{said}\n")


def test_a_request_outside_the_window_waits_as_a_run_for_the_next_opening(
    shop: Shop, served: Served
) -> None:
    app = shop.described(window=[closed()])
    first, second = (served.start("deploy", app=app) for _ in range(2))
    states = [until(run, "Postponed")["state"] for run in (first, second)]
    (waits,) = scheduled(shop.name)  # both wait as one
    opening = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%d 12:00 UTC")
    for state in states:
        assert state["type"] == "COMPLETED"
        assert f"{shop.name} may not be deployed before " in state["message"]
        assert opening in state["message"]
        assert waits["id"] in state["message"]
    assert waits["expected_start_time"][:16] == opening[:16].replace(" ", "T")
    assert waits["parameters"]["app"]["name"] == shop.name
    assert waits["name"] == f"deploy {shop.name} nonstop-lab-hello:v1"
    assert history.report(shop.name).startswith(f"# {shop.name}: postponed\n")
    assert shop.containers() == {}


def test_of_different_requests_the_latest_waits(shop: Shop, served: Served) -> None:
    app = shop.described(window=[closed()])
    for image in ("shop:1.5", "shop:1.6"):
        until(served.start("deploy", app=app, image=image), "Postponed")
    (waits,) = scheduled(shop.name)
    assert waits["parameters"]["image"] == "shop:1.6"
    assert waits["parameters"]["wait"] == LONGEST_WAIT
    states = {run["state_name"]: run for run in history.runs(shop.name)}
    assert f"asked for run {waits['name']}" in states["Superseded"]["state"]["message"]


def test_a_run_that_is_tried_again_long_before_its_opening_waits(
    shop: Shop, served: Served
) -> None:
    until(served.start("deploy", app=shop.described(window=[closed()])), "Postponed")
    (waits,) = scheduled(shop.name)
    for state in ("CANCELLED", "SCHEDULED"):
        history.ask("POST", f"/flow_runs/{waits['id']}/set_state", {"state": {"type": state}})
    until(waits["id"], "Postponed")
    assert shop.containers() == {}


def test_what_waited_for_the_opening_is_deployed_then(shop: Shop, served: Served) -> None:
    opening = minute(60)
    opens = {"opens": f"{opening:%H:%M}", "closes": f"{opening + timedelta(hours=1):%H:%M}"}
    app = shop.described(window=[opens])
    # Prefect may be too early by a moment, or not: of these three it is enough to know the end
    others = [app | {"name": f"{shop.name}-{n}", "image": "nobody/has:this"} for n in "abc"]
    runs = [served.start("deploy", app=one) for one in (app, *others)]
    told = [until(run, "Postponed")["state"]["message"] for run in runs]
    waits = [re.findall(r"flow-run/([0-9a-f-]{36})", words)[0] for words in told]
    time.sleep(max(0, (opening - datetime.now(UTC)).total_seconds()))
    until(waits[0], "Completed")
    assert datetime.now(UTC) > opening - timedelta(seconds=1)
    assert shop.live() == 1
    for wait in waits[1:]:
        assert "nobody/has:this" in until(wait, "Refused")["state"]["message"]


def test_a_window_that_closes_while_a_run_waits_for_another_one_is_closed(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    closing = minute(20)
    opens = {"opens": f"{closing - timedelta(hours=1):%H:%M}", "closes": f"{closing:%H:%M}"}
    command.describe(window=[opens])
    with (
        Engine() as engine,
        Lock(engine, Nginx(engine, shop.app().proxy), shop.name, "another run", 0, print),
    ):
        waits = command.start("deploy", shop.name, "--wait", "100")
        time.sleep((closing - datetime.now(UTC)).total_seconds())
        assert waits.poll() is None
    _, err = waits.communicate(timeout=120)
    assert f"{shop.name} may not be deployed before" in " ".join(err.split())
    assert waits.returncode == 2
    assert shop.live() == 1


def test_a_rollback_that_is_tried_again_does_not_bring_the_bad_release_back(
    shop: Shop, served: Served
) -> None:
    shop.deploy("one")
    shop.deploy("bad")
    run = served.start("rollback", app=shop.name)
    until(run, "Completed")
    assert shop.releases() == {"one"}
    again = {"state": {"type": "SCHEDULED"}, "force": True}  # as `prefect flow-run retry` asks
    history.ask("POST", f"/flow_runs/{run}/set_state", again)
    told = until(run, "Unchanged")["state"]["message"]
    assert told == f"Release 3 of {shop.name} serves: an earlier try of this run returned to it."
    assert shop.releases() == {"one"}


def test_a_waiting_run_that_somebody_cancelled_is_not_waited_for(
    shop: Shop, served: Served
) -> None:
    app = shop.described(window=[closed()])
    until(served.start("deploy", app=app), "Postponed")
    (first,) = scheduled(shop.name)
    history.ask("POST", f"/flow_runs/{first['id']}/set_state", {"state": {"type": "CANCELLED"}})
    told = [until(served.start("deploy", app=app), "Postponed") for _ in range(2)]
    (second,) = scheduled(shop.name)
    assert second["id"] != first["id"]
    assert all(second["id"] in one["state"]["message"] for one in told)


def test_a_reason_overrides_the_window_and_is_in_the_report(command: Command) -> None:
    command.describe(window=[closed()])
    shop = command.shop
    _, err = command.run("deploy", shop.name, code=2)
    said = " ".join(err.split())
    assert f"{shop.name} may not be deployed before" in said
    assert "ask again then (a Prefect server with a deployment of it" in said
    assert shop.containers() == {}
    out, _ = command.run("plan", shop.name)
    assert re.match(r"not before .* 12:00 UTC, outside its release windows; or with", out)
    command.run("deploy", shop.name, "--override", "the shop is down")
    assert shop.live() == 1
    told = history.report(shop.name)
    assert "\nOutside its release windows, with the reason: the shop is down\n" in told


def deployed_by(served: Served, shop: Shop, **beside: Any) -> None:
    """The server has a deployment of the shop, with that beside the app; nobody runs it."""
    deployment = history.ask("GET", f"/deployments/{served.ids['deploy']}")
    body = {
        "name": shop.name,
        "flow_id": deployment["flow_id"],
        "parameters": {"app": shop.described()} | beside,
        "parameter_openapi_schema": deployment["parameter_openapi_schema"],
    }
    history.ask("POST", "/deployments/", body)


def test_a_command_outside_the_window_waits_as_a_run_of_the_app_s_deployment(
    command: Command, served: Served
) -> None:
    shop = command.shop
    deployed_by(served, shop)
    command.describe(window=[closed()])
    opening = datetime.now(UTC) + timedelta(days=2)
    for _ in range(2):
        _, err = command.run("deploy", shop.name, "--image", "nonstop-lab-hello:v2", code=2)
        (waits,) = scheduled(shop.name)
        said = " ".join(err.split())
        assert f"may not be deployed before {opening:%a %Y-%m-%d} 12:00 UTC: run deploy" in said
        assert f"{waits['id']}) waits for it." in said
    assert waits["expected_start_time"][:16] == f"{opening:%Y-%m-%d}T12:00"
    assert waits["name"] == f"deploy {shop.name} nonstop-lab-hello:v2"
    assert waits["parameters"]["image"] == "nonstop-lab-hello:v2"
    assert parse(waits["parameters"]["app"]) == shop.app(window=[closed()])
    assert shop.containers() == {}


def test_a_deploy_at_a_later_time_is_a_run_of_the_app_s_deployment(
    command: Command, served: Served
) -> None:
    shop = command.shop
    _, err = command.run("deploy", shop.name, "--at", "03:00", code=2)
    assert f"has no deployment of {shop.name}: make it with `prefect deploy --all`" in " ".join(
        err.split()
    )
    deployed_by(served, shop)
    more = ("--approve", "--wait", "60", "--json")
    out, _ = command.run(
        "deploy", shop.name, "--image", "nonstop-lab-hello:v2", "--at", "03:00", *more
    )
    said = json.loads(out)
    (waits,) = scheduled(shop.name)
    assert waits["id"] in said["message"]
    given = {"image": "nonstop-lab-hello:v2", "approve": True, "wait": 60.0}
    assert waits["parameters"] == {"app": shop.described()} | given
    assert waits["name"] == f"deploy {shop.name} nonstop-lab-hello:v2"
    start = datetime.fromisoformat(waits["expected_start_time"]).astimezone()
    assert (start.hour, start.minute) == (3, 0)
    assert timedelta(0) < start - datetime.now().astimezone() <= timedelta(days=1, hours=1)
    command.environment = command.environment | {"PREFECT_API_URL": ""}
    _, err = command.run("deploy", shop.name, "--at", "03:00", code=2)
    assert "needs a Prefect server and its runner" in " ".join(err.split())
    assert shop.containers() == {}


def test_a_deploy_at_a_later_time_waits_for_another_run_unless_told_how_long(
    command: Command, served: Served
) -> None:
    shop = command.shop
    for beside, wait in (({}, LONGEST_WAIT), ({"wait": 60}, 60)):
        deployed_by(served, shop, **beside)
        command.run("deploy", shop.name, "--at", "03:00")
        (waits,) = scheduled(shop.name)
        assert waits["parameters"]["wait"] == wait
        history.ask("DELETE", f"/flow_runs/{waits['id']}")


@pytest.fixture
def host(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host beside the tests' server, to start and stop; pushes deploy its app."""
    (tmp_path / "generic").write_text(SECRET)
    monkeypatch.setenv(SECRETS, str(tmp_path))
    made = Host(shop, tmp_path, api=str(PREFECT_API_URL.value()))
    made.describe(deploy_on_push="v*")
    yield made
    for flow in ("deploy", "rollback"):  # a push is for every app that has this image
        path = f"/deployments/name/{flow}/{shop.name}"
        history.ask("DELETE", f"/deployments/{history.ask('GET', path)['id']}")


def push(host: Host) -> str:
    """The run that any CI is told of for its push of the second image, and for the same again."""
    body = json.dumps({"image": "nonstop-lab-hello:v2"}).encode()
    headers = JSON | standard(body, SECRET, f"push-of-{host.shop.name}")
    url = f"{host.receiver}/webhooks/generic"
    answer = httpx.post(url, content=body, headers=headers, timeout=30)
    assert answer.status_code == 202, answer.text
    (run,) = answer.json()["runs"]
    return str(run["run"])


def step(host: Host, run: str, name: str) -> bool:
    """Whether the run has begun with that step."""
    of = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"name": {"like_": name}}}
    return bool(host.find("task_runs", **of))


def test_what_only_waited_when_its_runner_was_stopped_is_begun_by_the_next(host: Host) -> None:
    with host:
        assert host.ended(host.ask("deploy")) == "Completed"
        slow = host.shop.described(verify={"bake_time": 180})
        at_work = host.ask("deploy", app=slow, force=True)
        host.until(lambda: step(host, at_work, "verify-traffic"), 120, "the cutover")
        pushed = push(host)
        host.until(lambda: step(host, pushed, "preflight"), 120, "the push's preflight")
        back = host.ask("rollback", wait=180)
        early = time.time() + 12  # and is fetched 10 s before
        later = host.ask("deploy", at=early, image="nonstop-lab-hello:v2", wait=180)
        host.until(lambda: step(host, back, "preflight"), 120, "the rollback's preflight")
        host.until(lambda: host.state(later) in ("Pending", "Submitting"), 120, "its being fetched")
        host.process.terminate()
        assert host.process.wait(120) == 0
    assert host.shop.live() == 1
    assert [host.state(run) for run in (at_work, back)] == ["Cancelled"] * 2
    for run in (pushed, later):
        states = [one["message"] for one in host.get(f"flow_run_states/?flow_run_id={run}")]
        assert STOPPED in states
        assert host.state(run) in ("Scheduled", "Late")
    begins = datetime.fromisoformat(host.get(f"flow_runs/{later}")["next_scheduled_start_time"])
    assert abs(begins.timestamp() - early) < 1
    with host:
        assert {host.ended(run) for run in (pushed, later)} == {"Completed", "Unchanged"}
        assert push(host) == pushed
    assert host.shop.get().text.endswith(",v2")


@pytest.mark.long
def test_a_run_that_had_only_been_asked_for_is_no_crash_when_its_runner_is_stopped(
    host: Host,
) -> None:
    with host:
        run = host.ask("deploy")
        host.until(lambda: host.state(run) in ("Pending", "Submitting"), 120, "its being fetched")
        host.process.terminate()
        assert host.process.wait(120) == 0
    names = [one["name"] for one in host.get(f"flow_run_states/?flow_run_id={run}")]
    assert "Crashed" not in names
    assert names[-1] in ("Scheduled", "Late")
    with host:
        assert host.ended(run) == "Completed"


@pytest.mark.long
def test_what_only_waited_is_not_taken_for_dead_however_long_nobody_begins_it(host: Host) -> None:
    with host:
        assert host.ended(host.ask("deploy")) == "Completed"
        app = host.shop.app()
        with (
            Engine() as engine,
            Lock(engine, Nginx(engine, app.proxy), app.name, "another run", 0, print),
        ):
            pushed = push(host)
            host.until(lambda: step(host, pushed, "preflight"), 120, "the push's preflight")
            time.sleep(35)  # its heartbeat has come
            host.process.terminate()
            assert host.process.wait(120) == 0
    time.sleep(SILENCE + 20)
    assert host.state(pushed) in ("Scheduled", "Late")
    with host:
        assert host.ended(pushed) == "Completed"
