"""Webhooks: what comes twice, out of order, while a deploy runs, or while the server is away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed, Scheduled

from flows.pushes.runs import FRESH
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.lock import Lock
from tasks.bluegreen.nginx import Nginx
from tasks.overtaken import PUSH, PUSHED, RECENT, SUPERSEDED, age
from tests.lab.clock import closed
from tests.lab.deliveries import HOST, REGISTRIES, WAYS, Pushed, harbor, quay
from tests.lab.shop import Shop, free_port
from tests.lab.webhooks import Receiver, Waiting

ROOT = Path(__file__).parents[1]


def ended(app: Waiting, number: int) -> None:
    """A run of the app has succeeded."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(app.runs()[number].id, Completed(), force=True)


def executing(run: Any) -> subprocess.Popen[str]:
    """A run in a process of its own, as a runner starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("sender", WAYS)
def test_delivered_twice_is_one_run(receiver: Receiver, tmp_path: Path, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    signed = WAYS[sender](Pushed(app.path), receiver.secrets[sender])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: receiver.send(signed), range(8)))
    runs = {receiver.run(answer)["run"] for answer in answers}
    with Receiver(tmp_path) as another:  # it remembers nothing
        runs.add(another.run(another.send(signed))["run"])
    if sender != "quay":  # at once, nothing tells a repetition from a second push of that tag
        assert runs == {str(run.id) for run in app.runs()}
        assert len(runs) == 1


def test_a_second_push_that_looks_the_same_is_not_lost(receiver: Receiver) -> None:
    app = Waiting("quay.io/")
    signed = quay(Pushed(app.path, "main"), receiver.secrets["quay"])
    first, second = (receiver.send(signed).json()["runs"] for _ in range(2))
    assert first == second  # it has not begun, so it will take what is there then
    ended(app, 0)
    assert receiver.send(signed).json()["runs"] != first
    assert len(app.runs()) == 2


def test_a_push_that_comes_again_is_told_what_became_of_its_run(
    receiver: Receiver, tmp_path: Path
) -> None:
    app = Waiting(f"{HOST}/")
    signed = harbor(Pushed(app.path), receiver.secrets["harbor"])
    first = receiver.send(signed).json()
    assert first["message"] == f"The run of {app.name} is queued."
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(app.runs()[0].id, Failed(), force=True)
    time.sleep(FRESH)
    with Receiver(tmp_path) as another:  # it remembers nothing
        for one in (receiver, another):
            again = one.send(signed).json()
            assert again["runs"] == [first["runs"][0] | {"state": "Failed", "ended": True}]
            words = f"It came before; the run of {app.name} is Failed and is not repeated: "
            assert again["message"].startswith(words)
    with get_client(sync_client=True) as client:
        client.delete_flow_run(app.runs()[0].id)
    time.sleep(FRESH)
    assert receiver.send(signed).json()["runs"][0]["run"] == str(app.runs()[0].id)


def test_a_push_outside_the_window_is_told_when_it_opens(receiver: Receiver) -> None:
    app, wrong = (
        Waiting(f"{HOST}/", window=[closed()]),
        Waiting(f"{HOST}/", window=[{"opens": "9"}]),
    )
    said = receiver.send(harbor(Pushed(app.path), receiver.secrets["harbor"])).json()
    opening = datetime.now(UTC) + timedelta(days=2)
    assert f"{app.name} may not be deployed before {opening:%a %Y-%m-%d} 12:00" in said["message"]
    assert said["runs"][0]["not_before"] == f"{opening:%Y-%m-%d}T12:00:00Z"
    said = receiver.send(harbor(Pushed(wrong.path), receiver.secrets["harbor"])).json()
    assert said["runs"][0]["not_before"] is None  # the run says what is wrong


def test_a_push_of_an_app_that_is_described_wrongly_is_a_run_that_says_so(
    receiver: Receiver,
) -> None:
    app = Waiting(f"{HOST}/", schema=True, port=None)
    with (
        get_client(sync_client=True) as client,
        pytest.raises(PrefectHTTPStatusError, match="'port' is a required property"),
    ):
        client.create_flow_run_from_deployment(app.deployment)
    assert receiver.send(harbor(Pushed(app.path), receiver.secrets["harbor"])).status_code == 202
    (run,) = app.runs()
    with executing(run) as process:
        process.communicate(timeout=120)
    (run,) = app.runs()
    assert run.state is not None
    assert (run.state.type, run.state.name) == ("FAILED", "Refused")
    assert "app.port: field required" in str(run.state.message)


def test_many_apps_may_be_pushed_at_once(receiver: Receiver) -> None:
    apps = [Waiting(f"{HOST}/") for _ in range(20)]
    signed = [harbor(Pushed(app.path), receiver.secrets["harbor"]) for app in apps]
    with ThreadPoolExecutor(len(apps)) as pool:
        answers = list(pool.map(receiver.send, signed))
    for app, answer in zip(apps, answers, strict=True):
        assert receiver.run(answer)["app"] == app.name
    assert [len(app.runs()) for app in apps] == [1] * len(apps)


def test_while_none_has_begun_only_the_newest_push_is_left(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/")
    now = time.time()
    for number, tag in enumerate(("1.1", "1.2", "1.3")):
        pushed = Pushed(app.path, tag, at=now - 30 + number)
        assert receiver.send(harbor(pushed, receiver.secrets["harbor"])).status_code == 202
    app.settled({"1.1": "Superseded", "1.2": "Superseded", "1.3": "Scheduled"})
    newest = app.runs()[-1]
    for run in app.runs()[:-1]:
        assert run.state is not None
        message = str(run.state.message)
        assert f"A newer push of {app.image}:1.3@sha256:" in message
        assert f"asked for run {newest.name}. Nothing was touched." in message


def test_of_many_pushes_at_once_the_newest_is_left_and_none_is_lost(receiver: Receiver) -> None:
    app, number, now = Waiting(f"{HOST}/"), 60, int(time.time()) - 90
    secret = receiver.secrets["harbor"]
    order = [7 * n % number for n in range(number)]
    pushes = [harbor(Pushed(app.path, f"1.{n}", at=now + n), secret) for n in order]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(receiver.send, pushes))
    told = [receiver.run(answer) for answer in answers]
    runs = {str(run.id): run for run in app.runs()}
    counted = 0
    for run in runs.values():
        (of,) = [tag for tag in run.tags if tag.startswith("newest-of-")] or ["newest-of-1"]
        counted += int(of.removeprefix("newest-of-"))
    assert counted == number > len(runs)
    tags = {
        str(run.parameters["image"]).split("@")[0].rpartition(".")[2]: run for run in app.runs()
    }
    for n, one in zip(order, told, strict=True):
        assert age(runs[one["run"]])[0] >= now + n
        assert one["newer"] == (str(n) not in tags)
    last = f"1.{number - 1}"
    app.settled({f"1.{n}": "Superseded" for n in tags} | {last: "Scheduled"})


@pytest.mark.parametrize("begun", [False, True])
def test_an_older_push_that_comes_later_does_not_win(receiver: Receiver, begun: bool) -> None:
    app = Waiting(f"{HOST}/")
    secret, now = receiver.secrets["harbor"], time.time()
    receiver.send(harbor(Pushed(app.path, "1.2", at=now - 10), secret))
    if begun:
        ended(app, 0)
    assert receiver.send(harbor(Pushed(app.path, "1.1", at=now - 20), secret)).status_code == 202
    app.settled({"1.1": "Superseded", "1.2": "Completed" if begun else "Scheduled"})


def test_a_senders_clock_that_is_ahead_does_not_block_later_pushes(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/")
    secret = receiver.secrets["harbor"]
    receiver.send(harbor(Pushed(app.path, "1.1", at=time.time() + 3600), secret))
    receiver.send(harbor(Pushed(app.path, "1.2", at=time.time() + 1), secret))
    app.settled({"1.1": "Superseded", "1.2": "Scheduled"})


def test_a_run_that_only_waits_for_another_one_gives_way_to_a_newer_push(
    receiver: Receiver, shop: Shop
) -> None:
    shop.deploy("one")
    before = shop.containers()
    described = shop.described(image=f"{HOST}/hello:v1", pull_policy="missing")
    app = Waiting(f"{HOST}/", **described)
    secret, now = receiver.secrets["harbor"], time.time()
    receiver.send(harbor(Pushed("hello", "v2", at=now - 20), secret))
    (older,) = app.runs()
    with (
        executing(older) as process,
        Engine() as engine,
        Lock(engine, Nginx(engine, shop.app().proxy), shop.name, "another run", 0, print),
    ):
        assert process.stdout is not None
        said = ""
        while "waiting for another run" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        receiver.send(harbor(Pushed("hello", "v3", at=now - 10), secret))
        process.communicate(timeout=120)  # while the other one is at work
    app.settled({"v2": "Superseded", "v3": "Scheduled"})
    assert shop.containers() == before
    assert shop.live() == 1


def test_a_push_that_waits_for_a_window_is_still_as_old_as_it_was(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/", window=[closed()])
    secret, now = receiver.secrets["harbor"], time.time()
    receiver.send(harbor(Pushed(app.path, "1.1", at=now - 20), secret))
    (asked,) = app.runs()
    with executing(asked) as process:
        process.communicate(timeout=120)
    (waits,) = [run for run in app.runs() if run.id != asked.id]
    assert app.states() == {"1.1": "Scheduled"}
    assert set(waits.tags) == {*asked.tags, f"app:{app.name}", "postponed"}
    assert age(waits)[0] == age(asked)[0]
    receiver.send(harbor(Pushed(app.path, "1.2", at=now - 10), secret))
    app.settled({"1.1": "Superseded", "1.2": "Scheduled"})


def test_the_newest_push_of_a_long_closed_time_is_known(receiver: Receiver) -> None:
    app, now = Waiting(f"{HOST}/"), time.time()
    opening: State[None] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=2))
    newest, number = RECENT + 1, 2 * RECENT + 3  # wherever it is looked first
    with get_client(sync_client=True) as client:
        for n in range(number):  # all are due at once, and all but one have given way
            run = client.create_flow_run_from_deployment(
                app.deployment,
                parameters={"image": f"{app.image}:1.{n}"},
                state=opening,
                tags=[PUSH],
                labels={PUSHED: now if n == newest else now - 60},
            )
            if n != newest:
                client.set_flow_run_state(run.id, Cancelled(name=SUPERSEDED), force=True)
    receiver.send(harbor(Pushed(app.path, "older", at=now - 30), receiver.secrets["harbor"]))
    deadline = time.monotonic() + 60
    while app.states()["older"] != SUPERSEDED:
        assert time.monotonic() < deadline, app.states()
        time.sleep(0.1)
    assert app.states()[f"1.{newest}"] == "Scheduled"


@pytest.mark.parametrize("sender", WAYS)
def test_while_the_prefect_server_is_away_the_sender_is_told_to_come_again(
    prefect: None, tmp_path: Path, sender: str
) -> None:
    app = Waiting(REGISTRIES[sender])
    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}),
        Receiver(tmp_path) as receiver,
    ):
        answer = receiver.send(WAYS[sender](Pushed(app.path), receiver.secrets[sender]))
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.elapsed.total_seconds() < 5
        assert "deliver it again" in answer.json()["message"]
        (tmp_path / sender).unlink()  # nor can be known whether it has a secret
        assert receiver.send(WAYS[sender](Pushed(app.path), "x" * 20)).status_code == 503
        health = receiver.client.get("/health")
        assert (health.status_code, health.json()) == (503, {"prefect": "away"})
    assert app.runs() == []
