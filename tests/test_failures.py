"""Whatever is wrong with green: blue serves, green is gone, and the failure says why."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.bluegreen.errors import (
    BadTraffic,
    CutoverUnproven,
    Failed,
    NonstopError,
    NothingKept,
    ReplicaCrashed,
    StateUnknown,
    Unhealthy,
)
from tests.lab.shop import Shop

DRIPS = """
import socket, time
listening = socket.create_server(("", 3000))
while True:
    asked = listening.accept()[0]
    asked.send(b"HTTP/1.1 200 OK\\r\\nX: ")
    try:
        while not time.sleep(0.1):
            asked.send(b"x")
    except OSError:
        pass
"""
BEFORE = [  # green is bad before it receives visitors, who then lose nothing at all
    (
        {"restart": "no", "environment": {"CRASH": "start", "PRINT": "no route"}},
        ReplicaCrashed,
        "ended with exit code 1",
    ),
    ({"environment": {"HEALTH_STATUS": "503"}}, Unhealthy, "/health answers status 503"),
    ({"environment": {"HEALTH_STATUS": "302"}}, Unhealthy, "/health answers status 302"),
    ({"health": {"headers": {"X-Release": "three"}}}, Unhealthy, "answered by somebody else"),
    ({"health": {"body": "^fine$"}}, Unhealthy, "does not match '\\^fine\\$'"),
    (
        {"command": ["python3", "-c", DRIPS], "health": {"timeout": 0.5}},
        Unhealthy,
        "no answer in 0.5 s",
    ),
    ({"port": 3001}, Unhealthy, "refused"),
    ({"command": ["/no/such/program"]}, ReplicaCrashed, "could not start"),
    ({"environment": {"START_SECONDS": "60"}}, Unhealthy, "did not become healthy in 2 s"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), BEFORE, ids=[row[2] for row in BEFORE])
def test_a_bad_green_never_receives_a_visitor(
    serving: Shop, changes: dict[str, Any], kind: type[NonstopError], words: str
) -> None:
    changes["health"] = {"deadline": 2} | changes.get("health", {})
    with serving.visitors() as heard, pytest.raises(kind, match=words) as caught:
        serving.deploy("two", **changes)
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) == {"one"}
    assert caught.value.outcome == "failed"
    assert caught.value.serves == "Release 1 serves, as before."
    assert serving.containers() == {"1-1": "running", "1-2": "running"}
    assert serving.live() == 1


def test_the_last_words_of_a_crashed_replica_are_the_evidence(shop: Shop) -> None:
    with pytest.raises(ReplicaCrashed) as caught:
        shop.deploy("one", environment={"CRASH": "start", "PRINT": "connecting to the past"})
    assert "connecting to the past" in caught.value.evidence
    assert "the database is not there" in caught.value.evidence


def test_a_green_that_is_bad_only_for_visitors_goes_back_by_itself(serving: Shop) -> None:
    with (
        serving.visitors(rate=300) as heard,
        pytest.raises(BadTraffic, match="fails its visitors") as caught,
    ):
        serving.deploy("two", environment={"FAIL_SHARE": "0.4"}, verify={"bake_time": 20})
    first = caught.value.evidence.splitlines()[0]
    assert re.fullmatch(r"(GET|POST) /\S*: 500 from [0-9.]+:3000", first)
    assert heard.lost == heard.errors["two"], heard.losses
    assert serving.releases() == {"one"}
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_who_holds_a_connection_to_a_green_that_is_taken_off_is_told(serving: Shop) -> None:
    bad = {"environment": {"FAIL_SHARE": "0.4"}, "verify": {"bake_time": 20}}
    with ThreadPoolExecutor(1) as aside:
        deploying = aside.submit(serving.deploy, "two", **bad, drain={"limit": 1})
        while serving.get().headers["X-Nonstop-Release"] != "2":
            assert not deploying.done()
            time.sleep(0.1)
        with (
            serving.visitors(kinds=["get", "websocket"]) as heard,
            pytest.raises(BadTraffic, match="fails its visitors"),
        ):
            deploying.result(timeout=60)
    assert heard.websockets["1001"] == 1
    assert "cut" not in heard.websockets


def test_a_green_that_will_not_stop_does_not_outlast_the_30_s_of_a_cancelled_run(
    serving: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving.visitors(rate=300), pytest.raises(BadTraffic):
        serving.deploy(
            "two",
            environment={"FAIL_SHARE": "0.4", "IGNORE_SIGTERM": "1"},
            verify={"bake_time": 20},
            stop_grace_period=60,
        )
    ended = time.time()
    (began,) = (r.created for r in caplog.records if r.getMessage().startswith("rolling back: "))
    assert 20 < ended - began < 30
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_what_the_engine_refuses_is_not_tried_again(
    serving: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(Failed, match=r"The engine refuses to create .*-2-1: .*CPUs") as caught:
        serving.deploy("two", cpus=1000)
    assert caught.value.serves == "Release 1 serves, as before."
    assert "Retry" not in caplog.text
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_green_that_crashes_while_it_is_watched_goes_back_by_itself(serving: Shop) -> None:
    began = time.monotonic()
    with pytest.raises(ReplicaCrashed, match=r"exit code 3|ended and was started again"):
        serving.deploy(  # three requests fail, mostly before anybody looks at its containers
            "two", environment={"CRASH": "8"}, verify={"bake_time": 60, "interval": "300ms"}
        )
    assert time.monotonic() - began < 30
    assert serving.releases() == {"one"}
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_green_that_answers_too_slowly_goes_back_by_itself(serving: Shop) -> None:
    with pytest.raises((BadTraffic, CutoverUnproven), match=r"no answer in 0.5 s"):
        serving.deploy(
            "two",
            environment={"LATENCY_SECONDS": "2"},
            verify={"bake_time": 30, "timeout": 0.5},
        )
    assert serving.releases() == {"one"}


def test_a_green_with_one_bad_replica_is_noticed_without_a_visitor(serving: Shop) -> None:
    with pytest.raises(BadTraffic, match=r"requests of ours .*/: no answer in"):
        serving.deploy(
            "two",
            environment={"LATENCY_SECONDS": "{{ 2 * (replica - 1) }}"},
            verify={"bake_time": 30, "interval": "50ms", "timeout": "300ms"},
        )
    assert serving.releases() == {"one"}


def test_a_green_whose_answers_say_something_else_goes_back_by_itself(serving: Shop) -> None:
    with pytest.raises(BadTraffic, match=r"body of / does not match '.Hi there,.* app'"):
        serving.deploy(
            "two",
            environment={"MESSAGE": "nobody"},
            verify={"body": "^Hi there,.* app", "bake_time": 20},
        )
    assert serving.releases() == {"one"}


def test_one_blip_is_no_reason_to_go_back(shop: Shop) -> None:
    shop.deploy("one")
    with shop.visitors(kinds=["get"]) as heard:
        shop.deploy("two", environment={"FAIL_FIRST": "1"}, verify={"bake_time": 3})
    assert heard.errors == {"two": 2}
    assert shop.releases() == {"two"}


def test_a_failed_first_deploy_does_not_block_the_fix(shop: Shop) -> None:
    with pytest.raises(Failed) as caught:
        shop.deploy("one", environment={"CRASH": "start"})
    assert caught.value.serves == "No release serves; there was none before."
    assert shop.containers() == {}
    assert shop.live() is None
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_a_failed_first_deploy_after_the_cutover_leaves_no_site(shop: Shop) -> None:
    with pytest.raises(BadTraffic):
        shop.deploy("one", verify={"status": [418], "bake_time": 5})
    assert shop.containers() == {}
    assert shop.live() is None
    assert "nonstop-" not in shop.exec("ls /etc/nginx/nonstop/sites")


def test_nothing_is_stopped_when_somebody_else_took_green_off_nginx(shop: Shop) -> None:
    shop.deploy("one")
    site = f"/etc/nginx/nonstop/sites/nonstop-{shop.name}.conf"
    shop.exec(f"cp {site} /tmp/one")

    def meddle() -> None:
        while shop.get().headers.get("X-Nonstop-Release") != "2":
            time.sleep(0.1)
        time.sleep(2)  # green was proven and verified long ago, a WebSocket keeps blue draining
        shop.exec(f"cp /tmp/one {site}")
        shop.api.kill(shop.proxy, "HUP")

    with shop.visitors(kinds=["websocket"]), ThreadPoolExecutor(1) as pool:
        time.sleep(0.5)
        done = pool.submit(meddle)
        with pytest.raises(StateUnknown, match="nginx serves 1, not 2"):
            shop.deploy("two", drain={"limit": 8})
        done.result()
    assert shop.containers() == dict.fromkeys(("1-1", "1-2", "2-1", "2-2"), "running")
    shop.deploy("three")
    assert shop.releases() == {"three"}


def test_a_rollback_returns_image_environment_and_settings(shop: Shop) -> None:
    shop.deploy("one", replicas=1, health={"path": "/ready"})
    shop.deploy("two", image="nonstop-lab-hello:v2")
    with shop.visitors() as heard:
        report = shop.rollback()
    assert heard.lost == 0, heard.losses
    assert report.release == 3
    assert shop.get().text == "Hi there, I love ! app1,v1"
    assert shop.get().headers["X-Release"] == "one"
    assert shop.containers() == {"3-1": "running", "2-1": "exited", "2-2": "exited"}


def test_a_rollback_of_a_rollback_returns_where_one_came_from(shop: Shop) -> None:
    shop.deploy("one")
    shop.deploy("two")
    shop.rollback()
    assert shop.releases() == {"one"}
    shop.rollback()
    assert shop.releases() == {"two"}


def test_a_rollback_passes_the_same_gates_as_a_deploy(shop: Shop, tmp_path: Path) -> None:
    shop.deploy(
        "one",
        volumes=[f"{tmp_path}:/world"],
        healthcheck={"test": "test ! -e /world/changed", "interval": "0.5s", "retries": 1},
        health={"deadline": 4},
    )
    shop.deploy("two")
    (tmp_path / "changed").touch()
    with shop.visitors(kinds=["get"]) as heard, pytest.raises(Unhealthy):
        shop.rollback()
    assert heard.lost == 0, heard.losses
    assert shop.releases() == {"two"}


def test_a_rollback_needs_a_complete_kept_release(shop: Shop) -> None:
    shop.deploy("one")
    with pytest.raises(NothingKept, match=r"no kept release to roll back to .live: 1, kept: none."):
        shop.rollback()
    shop.deploy("two")
    shop.api.remove_container(shop.container("1-2"), force=True)
    with pytest.raises(NothingKept, match="kept: none"):
        shop.rollback()
    assert shop.releases() == {"two"}
