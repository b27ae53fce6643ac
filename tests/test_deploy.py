"""What visitors and operators see of a deploy that goes well."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from flows.recover import recover
from tasks.bluegreen.drain import HEADER_TIMEOUT
from tasks.bluegreen.errors import Failed, Refused
from tests.lab.history import runs
from tests.lab.needs import cannot_run
from tests.lab.shop import Shop
from tests.lab.visitors import posts_in_order

TAKES = """
import os, pathlib, socket
listening = socket.create_server(("", 3000))
while True:
    asked = listening.accept()[0]
    head, _, body = asked.recv(65536).partition(b"\\r\\n\\r\\n")
    if head.startswith(b"POST"):
        pathlib.Path("/taken/orders").open("ab").write(body + b";")
        os._exit(1)
    asked.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    asked.close()
"""


def test_visitors_notice_nothing_while_green_replaces_blue(shop: Shop, tmp_path: Path) -> None:
    ledger = {"volumes": [f"{tmp_path}:/posts"], "environment": {"POSTS_FILE": "/posts/ids"}}
    shop.deploy("one", **ledger)
    with shop.visitors() as heard:
        report = shop.deploy("two", verify={"bake_time": 2}, **ledger)
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) == {"one", "two"}
    assert shop.releases() == {"two"}
    assert report.verified
    assert report.verified.visitors > 100
    assert heard.confirmed
    assert posts_in_order(tmp_path / "ids", heard.confirmed) == ""


def test_the_tutorials_lines_are_what_visitors_read(shop: Shop) -> None:
    shop.deploy()
    lines = {shop.get().text for _ in range(8)}
    assert lines == {"Hi there, I love ! app1,v1", "Hi there, I love ! app2,v1"}
    assert shop.get("/this").text.startswith("Hi there, I love this! app")


def test_a_long_download_is_finished_by_blue_before_it_stops(shop: Shop) -> None:
    shop.deploy("one")
    with shop.visitors(kinds=["get", "download"], download=14) as heard:
        time.sleep(1)
        report = shop.deploy("two", drain={"limit": 30})
    assert heard.lost == 0, heard.losses
    assert report.drained
    assert report.drained.seconds > 3
    assert report.drained.left == 0


def test_a_websocket_lives_until_the_drain_limit_and_is_told_1001_once(shop: Shop) -> None:
    shop.deploy("one")
    with shop.visitors(kinds=["websocket"]) as heard:
        time.sleep(0.5)
        report = shop.deploy("two")
    assert report.drained
    assert report.drained.left == 1
    assert report.drained.seconds >= 4
    assert heard.websockets == {"1001": 1, "open": 1}
    assert heard.lost == 0, heard.losses
    assert "shutting down" not in shop.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def test_only_a_websocket_is_upgraded(serving: Shop) -> None:
    """With `h2c` who stands behind the proxy could be asked past it."""
    asks = {"Connection": "Upgrade", "Sec-WebSocket-Key": "bm9uc3RvcCBsYWIga2V5Lg=="}
    assert serving.get("/ws", Upgrade="h2c", **asks).text.startswith("Hi there, I love ws!")


def test_a_slow_upload_reaches_blue_and_visitors_of_other_sites_do_not_hold_the_drain(
    shop: Shop,
) -> None:
    shop.deploy("one", drain={"limit": 200})
    other = Shop(shop.api)
    other.proxy, other.port, other.url = shop.proxy, shop.port, shop.url
    other.description["proxy"] = shop.description["proxy"]
    try:
        other.deploy("other", hosts=["other.example.com"])
        with (
            socket.create_connection(("127.0.0.1", shop.port)) as stays,
            ThreadPoolExecutor() as threads,
        ):
            stays.sendall(
                b"GET /ws HTTP/1.1\r\nHost: other.example.com\r\nUpgrade: websocket\r\n"
                b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: bm9uc3RvcCBsYWIga2V5Lg==\r\n\r\n"
            )
            assert b" 101 " in stays.recv(4096)
            answer = threads.submit(upload, shop, HEADER_TIMEOUT + 12)
            time.sleep(1)
            report = shop.deploy("two", drain={"limit": 200})
            assert answer.result().headers["X-Release"] == "one"
            assert report.drained
            assert HEADER_TIMEOUT < report.drained.seconds < 180, report.drained
    finally:
        other.close()


def test_an_upload_to_blue_may_be_held_by_a_worker_that_another_app_s_reload_left(
    shop: Shop,
) -> None:
    shop.deploy("one")
    other = Shop(shop.api)
    other.proxy, other.port, other.url = shop.proxy, shop.port, shop.url
    other.description["proxy"] = shop.description["proxy"]
    try:
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(upload, shop, 25)
            time.sleep(1)
            other.deploy("other", hosts=["other.example.com"])
            report = shop.deploy("two", drain={"limit": 60})
            assert answer.result().headers["X-Release"] == "one"
        assert report.drained
        assert report.drained.seconds < 26
        after = shop.deploy("three").drained
        assert after
        assert after.seconds < 2
    finally:
        other.close()


def upload(shop: Shop, seconds: float) -> httpx.Response:
    """The answer to a POST whose body takes that long to come."""

    def slowly() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 4096
            time.sleep(seconds / 30)

    return httpx.post(shop.url + "/", content=slowly(), timeout=seconds).raise_for_status()


def test_only_green_runs_afterwards_and_blue_is_kept(shop: Shop) -> None:
    for release in ("one", "two", "three"):
        shop.deploy(release)
    assert shop.containers() == {
        "3-1": "running",
        "3-2": "running",
        "2-1": "exited",
        "2-2": "exited",
    }


def test_the_first_visitor_meets_an_app_that_is_warm(shop: Shop) -> None:
    cold = {"environment": {"COLD_SECONDS": "3"}}
    shop.deploy("one")
    with shop.visitors(kinds=["get", "fresh"]) as heard:
        shop.deploy("two", health={"warm_up": ["/"]}, verify={"bake_time": 1}, **cold)
    assert heard.slowest < 2
    assert heard.releases["two"] > 0


def test_an_app_may_take_its_time_to_start(shop: Shop) -> None:
    shop.deploy("one")
    with shop.visitors() as heard:
        shop.deploy("two", environment={"START_SECONDS": "1", "HEALTHY_AFTER": "3"})
    assert heard.lost == 0, heard.losses
    assert shop.releases() == {"two"}


def test_an_app_that_ignores_its_stop_signal_is_stopped_after_its_grace(shop: Shop) -> None:
    shop.deploy("one", environment={"IGNORE_SIGTERM": "1"}, stop_grace_period=2)
    began = time.monotonic()
    report = shop.deploy("two")
    assert report.cleanup == "done"
    assert time.monotonic() - began < 20
    assert shop.containers()["1-1"] == "exited"


def test_a_cleanup_that_fails_undoes_nothing_and_is_finished_by_the_next_run(shop: Shop) -> None:
    shop.deploy("one")
    shop.deploy("two")
    oldest = shop.api.inspect_container(shop.container("1-1"))["Id"]
    folder = Path(shop.api.info()["DockerRootDir"], "containers", oldest)
    if os.geteuid() or not folder.is_dir():
        cannot_run("only root can keep the local engine from removing a container")
    (folder / "stays").touch()
    if subprocess.run(["chattr", "+i", folder / "stays"], check=False).returncode:
        cannot_run("the engine's disk has no file that cannot be removed")
    try:
        report = shop.deploy("three")
        assert (report.outcome, report.cleanup) == ("succeeded", "pending")
        assert "Cleanup is pending, the next run or `nonstop recover` finishes it" in report.message
        assert shop.releases() == {"three"}
    finally:
        subprocess.run(["chattr", "-i", folder / "stays"], check=True)
    recover(shop.name)
    assert set(shop.containers()) == {"3-1", "3-2", "2-1", "2-2"}


def test_docker_s_own_health_check_has_a_say(shop: Shop) -> None:
    check = {"interval": "0.5s", "retries": 1}
    shop.deploy("one", healthcheck={"test": "true", **check})
    with pytest.raises(Failed, match=r"Docker's health check says (unhealthy|starting)"):
        shop.deploy("two", healthcheck={"test": "false", **check}, health={"deadline": 4})
    assert shop.releases() == {"one"}


def test_an_image_s_own_health_check_has_a_say(shop: Shop) -> None:
    made = shop.api.create_container(
        "nonstop-lab-hello:v1", labels={"nonstop.lab.shop": shop.name}
    )["Id"]
    image = f"{shop.name}:sick"
    check = "HEALTHCHECK --interval=500ms --retries=1 CMD false"
    shop.api.commit(made, repository=shop.name, tag="sick", changes=[check])
    try:
        shop.deploy("one")
        with pytest.raises(Failed, match=r"Docker's health check says (unhealthy|starting)"):
            shop.deploy("two", image=image, health={"deadline": 4})
    finally:
        shop.api.remove_image(image)
    assert shop.releases() == {"one"}


def test_no_more_replicas_start_at_a_time_than_was_asked_for(shop: Shop) -> None:
    shop.deploy("one", replicas=3, parallelism=1)
    seen = [shop.api.inspect_container(shop.container(f"1-{index}")) for index in (1, 2, 3)]
    for before, after in pairwise(seen):
        assert after["Created"] > before["State"]["StartedAt"]


def test_labels_tell_whose_a_container_is_and_which_run_made_it(shop: Shop) -> None:
    with pytest.raises(Failed):
        shop.deploy("zero", environment={"CRASH": "start"})
    shop.deploy("one")
    run = runs(shop.name)[0]
    for index in ("1", "2"):
        labels = shop.api.inspect_container(shop.container(f"1-{index}"))["Config"]["Labels"]
        assert {
            name: labels[f"nonstop.{name}"] for name in ("app", "release", "replica", "run")
        } == {
            "app": shop.name,
            "release": "1",
            "replica": index,
            "run": run["id"],
        }


def test_no_post_is_repeated_when_the_replica_that_took_it_dies(shop: Shop, tmp_path: Path) -> None:
    shop.deploy(command=["python3", "-c", TAKES], volumes=[f"{tmp_path}:/taken"])
    assert httpx.post(shop.url, content="an order", trust_env=False).status_code == 502
    assert (tmp_path / "orders").read_text() == "an order;"
    assert {shop.get().text for _ in range(4)} == {"ok"}


@pytest.mark.parametrize("good", [True, False])
def test_leftovers_of_a_dead_run_are_removed_and_do_not_block(shop: Shop, good: bool) -> None:
    shop.deploy("one")
    blue = shop.api.inspect_container(shop.container("1-1"))["Config"]["Labels"]
    for number, command in (("2", "true"), ("3", "sleep 600")):
        made = shop.api.create_container(
            "nonstop-lab-hello:v1",
            command=["sh", "-c", command],
            name=shop.container(f"{number}-1"),
            labels=blue | {"nonstop.release": number},
        )
        shop.api.start(made["Id"])
    if good:
        assert shop.deploy("two").release == 2
        assert shop.containers() == dict.fromkeys(("2-1", "2-2"), "running") | dict.fromkeys(
            ("1-1", "1-2"), "exited"
        )
    else:
        with pytest.raises(Failed):
            shop.deploy("two", environment={"CRASH": "start"})
        assert set(shop.containers()) == {"1-1", "1-2"}


def test_a_stranger_s_container_with_green_s_name_is_left_alone(shop: Shop) -> None:
    shop.deploy("one")
    stranger = shop.api.create_container(
        "nonstop-lab-hello:v1", name=shop.container("2-2"), labels={"nonstop.lab.shop": shop.name}
    )
    with pytest.raises((Refused, Failed), match="exists and is not ours"):
        shop.deploy("two")
    assert shop.api.inspect_container(stranger["Id"])["State"]["Status"] == "created"
    assert shop.releases() == {"one"}
    assert set(shop.containers()) == {"1-1", "1-2"}
