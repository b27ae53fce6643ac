"""What visitors met is read from the proxy's log, each line once, whatever befalls the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.artifact import markdown
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import AGENT
from tasks.bluegreen.visits import READ, Attempts, Side, Visits
from tests.lab.images import PROXY
from tests.lab.nginx import OwnNginx
from tests.lab.relay import Relay
from tests.lab.shop import Shop

GREEN, BLUE = "10.0.0.1:80", "10.0.0.2:80"
# Every 20th request failed.
PRINTS = """
import json, sys, time
def tell(app, upstream, count, since, pause=0):
    for number in range(count):
        said = {"app": app, "release": 1, "at": since, "id": str(number), "status": 200}
        said |= {"upstream": upstream, "upstream_status": "200" if number % 20 else "500"}
        said |= {"agent": "browser" * 20}
        print(json.dumps(said, separators=(",", ":")), flush=not number % 50)
        time.sleep(pause if not number % 50 else 0)
    sys.stdout.flush()
"""


@pytest.fixture
def prints(shop: Shop) -> Callable[..., None]:
    """Starts a container in the proxy's place that prints by `tell` of PRINTS, then sleeps."""

    def start(script: str, driver: str = "json-file", **options: str) -> None:
        made = shop.api.create_container(
            PROXY,
            name=shop.proxy,
            entrypoint=["python3", "-c", f"{PRINTS}{script}\ntime.sleep(600)"],
            labels={"nonstop.lab.shop": shop.name},
            host_config=shop.api.create_host_config(log_config={"Type": driver, "Config": options}),
        )
        shop.api.start(made)

    return start


@contextmanager
def listening(shop: Shop, since: float = 0.0, blue: float = 0.0) -> Iterator[Visits]:
    """Visits of green, which started then, and of a blue that was created then."""
    with Engine() as engine, Engine() as follower:
        nginx = Nginx(engine, shop.app().proxy)
        sides = Side(frozenset({GREEN}), since), Side(frozenset({BLUE}), blue)
        with Visits(follower, nginx, shop.name, *sides) as visits:
            yield visits


def until_printed(shop: Shop, lines: int) -> None:
    """The container has printed so many, the newest ones being in the log."""
    deadline = time.monotonic() + 60
    while f"{lines - 1}".encode() not in shop.api.logs(shop.proxy, tail=1):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_log_that_is_rotated_meanwhile_is_read_line_by_line(
    shop: Shop, prints: Callable[..., None], driver: str
) -> None:
    script = f"time.sleep(1); tell('{shop.name}', '{GREEN}', 6000, 0, pause=0.05)"
    prints(script, driver, **{"max-size": "200k", "max-file": "12"})
    with listening(shop) as visits:
        time.sleep(3)
        assert 0 < visits.green.total < 6000
        until_printed(shop, 6000)
        visits.up_to_now()
    assert visits.green == Attempts(6000, 300)
    assert visits.deaf == ""


def test_lines_that_were_rotated_away_unread_are_told_of(
    shop: Shop, prints: Callable[..., None]
) -> None:
    prints(
        f"tell('{shop.name}', '{GREEN}', 100, 0); time.sleep(2); "
        f"tell('{shop.name}', '{GREEN}', 30_000, 0)",
        **{"max-size": "50k", "max-file": "2"},
    )
    with listening(shop) as visits:
        until_printed(shop, 30_000)
        visits.up_to_now()
    assert 100 < visits.green.total < 30_000
    assert visits.deaf == f"lines of the log of {shop.proxy} were gone before they were read"


def test_a_proxy_that_is_restarted_meanwhile_is_heard_again(
    shop: Shop, prints: Callable[..., None]
) -> None:
    prints(f"tell('{shop.name}', '{GREEN}', 500, 0)")
    with listening(shop) as visits:
        until_printed(shop, 500)
        time.sleep(1.5)
        assert visits.green == Attempts(500, 25)
        shop.api.restart(shop.proxy, timeout=0)
        time.sleep(1)
        until_printed(shop, 500)
        visits.up_to_now()
    assert visits.green == Attempts(1000, 50)
    assert visits.deaf == ""


def test_an_engine_that_is_out_of_reach_for_a_while_costs_no_line(
    shop: Shop, prints: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints(f"tell('{shop.name}', '{GREEN}', 4000, 0, pause=0.1)")
    with Relay(tmp_path) as relay:
        monkeypatch.setenv("DOCKER_HOST", relay.url)
        with listening(shop) as visits:
            for _ in range(3):
                time.sleep(1)
                relay.cut()
                time.sleep(1.2)
                assert "did not read the log" in visits.deaf
                relay.mend()
            until_printed(shop, 4000)
            visits.up_to_now()
    assert visits.green == Attempts(4000, 200)
    assert visits.deaf == ""


def test_an_engine_that_is_out_of_reach_in_the_end_is_told_of(
    shop: Shop, prints: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints(f"tell('{shop.name}', '{GREEN}', 100, 0)")
    with Relay(tmp_path) as relay:
        monkeypatch.setenv("DOCKER_HOST", relay.url)
        with listening(shop) as visits:
            time.sleep(1)
            relay.cut()
            visits.up_to_now()
            assert f"did not read the log of {shop.proxy}" in visits.deaf


def test_a_log_that_cannot_be_read_is_told_of(shop: Shop, prints: Callable[..., None]) -> None:
    prints("", "none")
    with listening(shop) as visits:
        visits.up_to_now()
    assert f"could not read the log of {shop.proxy}" in visits.deaf


def test_a_line_of_many_entries_is_one(shop: Shop, prints: Callable[..., None]) -> None:
    prints(
        f'print(\'{{"app":"{shop.name}","at":1,"status":200,"agent":"\' + \'x\' * 50_000 + '
        f'\'","upstream":"{GREEN}","upstream_status":"500"}}\', flush=True)'
    )
    time.sleep(1)
    with listening(shop) as visits:
        visits.up_to_now()
    assert visits.green == Attempts(1, 1)


def test_blue_is_found_beside_a_busy_site(shop: Shop, prints: Callable[..., None]) -> None:
    now = time.time()
    prints(
        f"tell('{shop.name}', '{BLUE}', 100, {now - 900}); "  # long ago
        f"tell('{shop.name}', '{BLUE}', 300, {now - 500}); tell('other', '{BLUE}', 20_000, {now}); "
        f"tell('{shop.name}', '{GREEN}', 40, {now}); tell('other', '{BLUE}', 15_000, {now})"
    )
    until_printed(shop, 15_000)
    began = time.monotonic()
    with listening(shop, since=now - 1) as visits:
        visits.up_to_now()
    assert time.monotonic() - began < READ
    assert visits.blue == Attempts(300, 15)
    assert visits.green == Attempts(40, 2)


def test_what_had_blue_s_addresses_before_it_does_not_count(
    shop: Shop, prints: Callable[..., None]
) -> None:
    """A green that failed leaves its number and its addresses to the next one."""
    now = time.time()
    prints(
        f"tell('{shop.name}', '{BLUE}', 40, {now - 20}); tell('{shop.name}', '{BLUE}', 60, {now})"
    )
    until_printed(shop, 60)
    with listening(shop, since=now, blue=now - 10) as visits:
        visits.up_to_now()
    assert visits.blue == Attempts(60, 3)


def test_an_app_that_fails_some_visitors_by_nature_is_deployed_beside_a_busy_site(
    shop: Shop,
) -> None:
    nature = {"FAIL_SHARE": "0.5"}
    shop.deploy("one", environment=nature)
    with shop.visitors(kinds=["get"]):
        time.sleep(4)
    shop.exec('seq -f \'{"app":"busy","number":%.0f}\' 20000 > /proc/1/fd/1')

    def visit() -> None:
        ours = {"User-Agent": AGENT}
        while shop.get(**ours).headers.get("X-Nonstop-Release") != "2":
            time.sleep(0.1)
        with shop.visitors(kinds=["get"]):
            time.sleep(4)

    with ThreadPoolExecutor(1) as pool:
        visiting = pool.submit(visit)
        verify = {"bake_time": 5, "failures": 20, "tolerance": 0.4}
        report = shop.deploy("two", environment=nature, verify=verify)
        visiting.result()
    assert report.verified
    assert report.verified.visitors_failed > 20


def test_a_report_says_that_visitors_were_not_heard(shop: Shop) -> None:
    OwnNginx(shop, log={"Type": "none"})
    report = shop.deploy("one", verify={"bake_time": 1})
    assert report.verified
    assert "does not support reading" in report.verified.deaf
    said = "Visitors were not watched to the end: The Docker engine could not read the log of"
    assert said in markdown(report, "completed", "nonstop deploy")
