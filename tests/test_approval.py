"""Somebody says yes before visitors get green; until then only whoever has the token meets it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deploy import deploy, rollback
from flows.recover import recover
from tasks.ask_approval import ask_approval, ensure_answerable
from tasks.bluegreen.errors import NotApproved, Unavailable
from tasks.bluegreen.model import PREVIEW, Report
from tasks.bluegreen.plan import plan_deploy
from tasks.observe import observe
from tests.lab import history
from tests.lab.clock import minute
from tests.lab.command import Command
from tests.lab.served import Served, cancel, resume, until
from tests.lab.shop import Shop

TOKEN = re.compile(r"-H '(X-Nonstop-Preview): ([0-9a-f]{32})'")


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Where a run waits for an answer while the test goes on."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


def site(shop: Shop) -> str:
    """The text of the shop's site in the proxy."""
    return shop.exec(f"cat /etc/nginx/nonstop/sites/nonstop-{shop.name}.conf")


def waiting(
    aside: ThreadPoolExecutor, shop: Shop, within: float = 60, **changes: Any
) -> tuple[Future[Report], str]:
    """A deploy that waits for its approval; its future, and its run's id."""
    app = shop.app("two", **changes)
    return paused(aside, shop, partial(deploy, app=app, approve=True, approve_within=within))


def paused(
    aside: ThreadPoolExecutor, shop: Shop, start: Callable[[], Report]
) -> tuple[Future[Report], str]:
    """What was started and waits for its approval; its future, and its run's id."""
    future = aside.submit(copy_context().run, start)
    while not (found := [r for r in history.runs(shop.name) if r["state_name"] == "Paused"]):
        assert not future.done(), future.exception()
        time.sleep(0.2)
    return future, str(found[0]["id"])


def header(shop: Shop) -> dict[str, str]:
    """The preview's header, as its artifact tells it."""
    told = TOKEN.search(history.artifact(f"approval-{shop.name}"))
    assert told
    return {told[1]: told[2]}


def test_only_the_header_reaches_green_and_a_yes_makes_it_live(shop: Shop, served: Served) -> None:
    shop.deploy("one")
    with shop.visitors() as heard:
        run = served.start(
            "deploy",
            image="nonstop-lab-hello:v2",
            app=shop.described(environment=shop.description["environment"] | {"RELEASE": "two"}),
            approve=True,
        )
        until(run, "Paused")
        token = header(shop)
        for _ in range(8):
            seen = shop.get(**token)
            assert (seen.headers["X-Release"], seen.headers["X-Nonstop-Release"]) == ("two", "2")
            seen = shop.get()
            assert (seen.headers["X-Release"], seen.headers["X-Nonstop-Release"]) == ("one", "1")
            for wrong in ("", "x", next(iter(token.values()))[:-1]):
                assert shop.get(**{"X-Nonstop-Preview": wrong}).headers["X-Release"] == "one"
        assert set(heard.releases) <= {"one"}
        assert resume(run, approve="perhaps", by="Kim")["status"] == "REJECT"
        assert resume(run, approve=True)["status"] == "REJECT"  # by whom?
        assert resume(run, approve=True, by="Kim", why="looks good")["status"] == "ACCEPT"
        until(run, "Completed")
    assert heard.lost == 0, heard.losses
    assert shop.releases() == {"two"}
    assert PREVIEW not in site(shop)
    assert shop.get(**token).headers["X-Release"] == "two"
    told = history.report(shop.name)
    assert "\nApproved by Kim: looks good.\n" in told
    everything = history.everything()
    value = next(iter(token.values()))
    assert value not in told
    assert value not in everything.replace(f"X-Nonstop-Preview: {value}", "")
    assert f"ask-approval {shop.name}-2" in history.steps({"id": run})


def test_a_no_goes_back_and_says_who_refused(serving: Shop, aside: ThreadPoolExecutor) -> None:
    before = site(serving)
    future, run = waiting(aside, serving)
    assert header(serving)
    assert resume(run, by="Kim", why="a typo")["status"] == "ACCEPT"  # no is the default
    with pytest.raises(NotApproved) as caught:
        future.result(timeout=120)
    assert caught.value.what == f"Release 2 of {serving.name} was refused by Kim: a typo."
    assert caught.value.serves == "Release 1 serves, as before."
    assert until(run, "Failed")["state"]["message"].startswith("Release 2 of")
    assert serving.releases() == {"one"}
    assert site(serving) == before
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_no_answer_is_a_no(serving: Shop, aside: ThreadPoolExecutor) -> None:
    future, run = waiting(aside, serving, within=4)
    with pytest.raises(NotApproved, match=r"Nobody approved release 2 of .* within 4 s"):
        future.result(timeout=120)
    state = until(run, "Failed")["state"]
    assert "Nobody approved" in state["message"]
    assert "Release 1 serves, as before." in state["message"]
    assert serving.releases() == {"one"}
    assert PREVIEW not in site(serving)


def test_the_time_for_a_yes_ends_with_the_release_window_unless_there_is_a_reason(
    shop: Shop, aside: ThreadPoolExecutor
) -> None:
    shop.deploy("one")
    closing = minute(25)
    opens = {"opens": f"{closing - timedelta(hours=1):%H:%M}", "closes": f"{closing:%H:%M}"}
    future, run = waiting(aside, shop, within=300, window=[opens])
    told = (
        f"answer before {closing:%Y-%m-%d %H:%M}:00 UTC, when the release window closes; no answer"
    )
    assert told in history.artifact(f"approval-{shop.name}")
    with pytest.raises(
        NotApproved, match=f"before the release window closed at {closing:%H:%M} UTC"
    ):
        future.result(timeout=120)
    assert timedelta(0) < datetime.now(UTC) - closing + timedelta(seconds=1) < timedelta(seconds=20)
    assert "Release 1 serves, as before." in until(run, "Failed")["state"]["message"]
    assert shop.releases() == {"one"}
    start = partial(
        deploy, app=shop.app("two", window=[opens]), approve=True, override="it is down"
    )
    future, run = paused(aside, shop, start)
    assert "release window" not in history.artifact(f"approval-{shop.name}")
    resume(run, approve=True, by="Kim")
    assert future.result(timeout=120).release == 2


def test_nobody_is_asked_once_the_window_has_closed(shop: Shop) -> None:
    plan = plan_deploy(shop.app("one"), observe.fn(shop.name, shop.app().proxy))
    with pytest.raises(NotApproved, match="before the release window closed"):
        ask_approval.fn(plan, (), 60, datetime.now(UTC))


def test_a_yes_is_for_one_try_only(serving: Shop, served: Served) -> None:
    bad = serving.described(image="nonstop-lab-hello:v2", verify={"bake_time": 1, "status": [418]})
    run = served.start("deploy", app=bad, approve=True)
    until(run, "Paused")
    assert resume(run, approve=True, by="Kim")["status"] == "ACCEPT"
    until(run, "Failed")
    again = {"state": {"type": "SCHEDULED"}, "force": True}  # as `prefect flow-run retry` asks
    history.ask("POST", f"/flow_runs/{run}/set_state", again)
    until(run, "Paused")
    assert serving.get().headers["X-Release"] == "one"
    assert resume(run, by="Kim")["status"] == "ACCEPT"
    assert "was refused by Kim" in until(run, "Failed")["state"]["message"]


def test_a_run_that_waits_is_cancelled_and_goes_back(serving: Shop, served: Served) -> None:
    run = served.start("deploy", app=serving.described(image="nonstop-lab-hello:v2"), approve=True)
    until(run, "Paused")
    assert PREVIEW in site(serving)
    cancel(run)
    until(run, "Cancelled")
    assert serving.live() == 1
    assert PREVIEW not in site(serving)
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_preview_that_a_dead_run_left_is_taken_away(serving: Shop, command: Command) -> None:
    before = site(serving)
    process = command.start("deploy", serving.name, "--approve", "--force")
    try:
        while PREVIEW not in site(serving):
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate()
    recover(serving.name, wait=60)
    assert site(serving) == before
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_template_of_one_s_own_previews_when_it_uses_the_pool(
    shop: Shop, aside: ThreadPoolExecutor, tmp_path: Path
) -> None:
    own = tmp_path / "own.conf.j2"
    text = (Path(__file__).parents[1] / "templates" / "site.conf.j2").read_text()
    own.write_text(text.replace("{{ pool }}", "{{ upstream }}"))
    shop.description["proxy"]["template"] = str(own)
    shop.deploy("one")
    future, run = waiting(aside, shop)
    assert "does not use `pool`, so there is no preview" in history.artifact(
        f"approval-{shop.name}"
    )
    resume(run, approve=True, by="Kim")
    assert future.result(timeout=120).release == 2


def test_an_edited_template_reaches_nobody_before_a_yes(
    shop: Shop, aside: ThreadPoolExecutor, tmp_path: Path
) -> None:
    own = tmp_path / "own.conf.j2"
    text = (Path(__file__).parents[1] / "templates" / "site.conf.j2").read_text()
    own.write_text(text)
    shop.description["proxy"]["template"] = str(own)
    shop.deploy("one")
    before = site(shop)
    own.write_text(text + "# edited\n")
    future, run = waiting(aside, shop)
    assert "is not the one that release 1 was made live with, so there is no preview" in (
        history.artifact(f"approval-{shop.name}")
    )
    assert site(shop) == before
    resume(run, approve=True, by="Kim")
    assert future.result(timeout=120).release == 2
    assert "# edited" in site(shop)


def test_a_first_deploy_and_a_rollback_are_approved_too(
    shop: Shop, aside: ThreadPoolExecutor
) -> None:
    future, run = waiting(aside, shop)
    assert "No release serves yet, so there is no preview" in history.artifact(
        f"approval-{shop.name}"
    )
    resume(run, approve=True, by="Kim")
    assert future.result(timeout=120).release == 1
    shop.deploy("three")
    for answer in (False, True):
        back = partial(rollback, shop.name, approve=True, approve_within=60)
        future, run = paused(aside, shop, back)
        assert shop.releases() == {"three"}
        assert shop.get(**header(shop)).headers["X-Nonstop-Release"] == "3"
        assert resume(run, approve=answer, by="Kim")["status"] == "ACCEPT"
        if answer:
            assert future.result(timeout=120).release == 3
        else:
            with pytest.raises(NotApproved, match=f"Release 3 of {shop.name} was refused by Kim"):
                future.result(timeout=120)
    assert shop.releases() == {"two"}


def test_without_a_server_nobody_could_say_yes() -> None:
    ensure_answerable(False)
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(Unavailable, match="needs a Prefect server, in whose UI somebody says yes"),
    ):
        ensure_answerable(True)
