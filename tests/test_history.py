"""What a colleague reads in the Prefect UI: names, tags, states, steps and reports."""

from __future__ import annotations

import re
import socket
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.artifact import markdown, publish
from flows.deploy import deploy, rollback
from flows.reported import reported
from flows.server import BRIEF, BUSY, briefly
from tasks.bluegreen.errors import BadInput, BadTraffic, Failed, NothingKept, ReplicaCrashed
from tasks.bluegreen.model import Report
from tests.lab import history
from tests.lab.busy import busy
from tests.lab.shop import Shop

SIX = (
    "start-green",
    "health-check",
    "render-config",
    "reload-nginx",
    "verify-traffic",
    "teardown-blue",
)


def test_a_run_s_names_tags_steps_and_report_tell_app_release_and_image(shop: Shop) -> None:
    shop.deploy("one", replicas=1)
    (run,) = history.runs(shop.name)
    assert run["name"] == f"deploy {shop.name} nonstop-lab-hello:v1"
    assert run["state_name"] == "Completed"
    assert run["state"]["message"] == f"Release 1 of {shop.name} serves."
    of_app = [f"{step} {shop.name}" for step in ("preflight", "observe")]
    of_release = [f"{step} {shop.name}-1" for step in SIX]
    assert sorted(history.until_steps(run, "teardown-blue", 8)) == sorted([*of_app, *of_release])
    with shop.visitors(kinds=["get"]):
        shop.deploy(
            "two", image="nonstop-lab-hello:v2", verify={"bake_time": 1.5}, health={"checks": 3}
        )
    told = history.report(shop.name)
    assert told.startswith(f"# {shop.name}: succeeded\n\nRelease 2 of {shop.name} serves.\n")
    ids = [
        shop.api.inspect_image(image)["Id"][:19]
        for image in ("nonstop-lab-hello:v1", "nonstop-lab-hello:v2")
    ]
    for line in (
        "## Changed\n\n- `image: nonstop-lab-hello:v1 -> nonstop-lab-hello:v2`\n",
        f"- `id: {ids[0]} -> {ids[1]}`",
        "- `environment.RELEASE`",
        "- `health.checks: 2 -> 3`",
        "- `replicas: 1 -> 2`",
        "\n| start-green | ",
        f"\nTo go back: `nonstop rollback {shop.name}`.",
    ):
        assert line in told, told
    watched = re.search(r"\| visitors \| (\d+) \| 0 \|", told)
    assert watched
    assert int(watched[1]) > 20
    shop.rollback()
    assert history.runs(shop.name)[0]["name"] == f"rollback {shop.name} to 1 nonstop-lab-hello:v1"
    assert "- `image: nonstop-lab-hello:v2 -> nonstop-lab-hello:v1`" in history.report(shop.name)


def test_a_failure_s_report_has_its_reason_its_evidence_and_who_serves(serving: Shop) -> None:
    with pytest.raises(ReplicaCrashed):
        serving.deploy("two", environment={"CRASH": "start"})
    run = history.runs(serving.name)[0]
    assert (run["state_type"], run["state_name"]) == ("FAILED", "Failed")
    message = run["state"]["message"]
    assert re.fullmatch(r"\S+-2-[12] ended .*[.] Release 1 serves, as before[.]", message)
    assert f"roll-back {serving.name}-2" in history.until_steps(run, "roll-back")
    told = history.report(serving.name)
    assert told.startswith(f"# {serving.name}: failed\n\n{message}\n")
    assert re.search(r"## Evidence\n\n```text\n(.*\n)*.*the database is not there(.*\n)*```", told)
    assert "| roll-back | " in told
    assert f"`nonstop status {serving.name}`" in told
    assert "Requests after the cutover" not in told
    with serving.visitors(kinds=["get"]), pytest.raises(BadTraffic):
        serving.deploy("two", verify={"bake_time": 5, "status": [204], "failures": 20})
    told = history.report(serving.name)
    assert "failed 20 of 20 requests of ours" in told
    assert "\n| ours | 20 | 20 |\n" in told
    watched = re.search(r"\| visitors \| (\d+) \| 0 \|", told)
    assert watched
    assert int(watched[1]) > 20


def test_a_refusal_and_what_serves_already_have_states_and_reports_of_their_own(
    serving: Shop,
) -> None:
    with pytest.raises(NothingKept):
        serving.rollback()
    run = history.runs(serving.name)[0]
    assert (run["state_type"], run["state_name"]) == ("FAILED", "Refused")
    assert "\n" not in run["state"]["message"]
    assert "no kept release to roll back to" in run["state"]["message"]
    told = history.report(serving.name)
    assert told.startswith(f"# {serving.name}: refused\n")
    assert f"then: `nonstop rollback {serving.name}`." in told
    serving.deploy("one", force=False)
    assert history.runs(serving.name)[0]["state_name"] == "Unchanged"
    told = history.report(serving.name)
    assert told.startswith(f"# {serving.name}: unchanged\n")
    assert f"`nonstop deploy {serving.name} --force`" in told


def test_wrong_parameters_are_refused_in_a_sentence(shop: Shop) -> None:
    wrong = shop.described(replicas=0) | {"prot": 80}
    with pytest.raises(BadInput, match=re.escape("app.replicas: input should be greater")):
        deploy(app=wrong, wait=-1)  # type: ignore[call-overload]  # as the API hands it over
    state = history.runs(shop.name)[0]["state"]
    assert state["name"] == "Refused"
    for part in ("app.prot: there is no such field", "wait: input should be greater", "touched."):
        assert part in state["message"]
    assert "\n" not in state["message"]
    with pytest.raises(BadInput, match=r"app: string should match pattern .*given: 'No App'"):
        rollback("No App")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TimeoutError("6 s"), "shop: a step did not end in its time. Nothing was deployed."),
        (KeyError("bug"), "shop: KeyError: 'bug'. Nothing was deployed."),
    ],
)
def test_what_nobody_expected_is_told_in_a_sentence(
    prefect: None, failure: Exception, words: str
) -> None:
    @flow(name="fails", validate_parameters=False)
    @reported
    def fails(app: str) -> Report:
        raise failure

    with pytest.raises(Failed) as caught:
        fails("shop")
    assert str(caught.value) == words
    assert caught.value.__cause__ is failure
    state = history.runs("shop")[0]["state"]
    assert (state["name"], state["message"]) == ("Failed", words)


@pytest.mark.parametrize(
    ("outcome", "state", "words"),
    [
        ("refused", "refused", "Change what the sentence above says, then: `AGAIN`."),
        ("refused", "postponed", "there is nothing to do."),
        ("refused", "superseded", "there is nothing to do: the newer run deploys."),
        ("failed", "failed", "When the cause is gone: `AGAIN`."),
        ("failed", "cancelled", "To have it after all: `AGAIN`."),
        ("failed", "interrupted", "To have it after all: `AGAIN`."),
        ("unknown", "unknown", "`nonstop status shop`, then `nonstop recover shop`."),
        ("succeeded", "unchanged", "To deploy it all the same: `AGAIN --force`."),
        ("succeeded", "succeeded", "To go back: `nonstop rollback shop`."),
    ],
)
def test_a_report_ends_with_the_next_command(outcome: Any, state: str, words: str) -> None:
    changed = state != "unchanged"
    report = Report(outcome=outcome, app="shop", message="So it is.", blue=1, changed=changed)
    said = markdown(report, state, "AGAIN").partition("## Next")[2]
    assert words in said
    assert said.count("`AGAIN") == words.count("`AGAIN")


@pytest.mark.parametrize("times", [0, 1, len(BUSY), len(BUSY) + 1])
def test_a_server_that_is_busy_for_a_moment_costs_no_report(
    prefect: None, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    name = f"busy-{uuid4().hex[:8]}"
    report = Report(outcome="succeeded", app=name, message="So it is.", release=1)
    with busy("/artifacts/", times):
        flow(publish)(report, "succeeded", "nonstop deploy")
    if times <= len(BUSY):
        assert history.report(name).startswith(f"# {name}: succeeded\n\nSo it is.\n")
    assert ("The report could not be kept" in caplog.text) == (times > len(BUSY))


def test_a_server_that_is_silent_is_asked_once_and_not_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what is said, says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(httpx.ReadTimeout),
            briefly() as client,
        ):
            client.read_flow_run(uuid4())
    assert time.monotonic() - began < 1.5 * BRIEF


def test_a_report_shows_what_an_app_prints_as_it_is() -> None:
    report = Report(
        outcome="failed",
        app="shop",
        message="shop-2-1 says <b>no</b>.",
        evidence="one\n```\n# two\n````\n<script>",
    )
    told = markdown(report, "failed", "nonstop deploy shop")
    assert "says &lt;b>no&lt;/b>." in told
    assert "`````text\none\n```\n# two\n````\n<script>\n`````" in told
