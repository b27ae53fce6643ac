"""Prefect's own UI in a real browser: its form, its buttons, and what it shows of a run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.lab.browser import SHOTS, Ui, browser
from tests.lab.host import Host
from tests.lab.shop import Shop


@pytest.fixture(scope="module")
def shop(api: Any) -> Iterator[Shop]:
    made = Shop(api)
    yield made
    made.close()


@pytest.fixture(scope="module")
def host(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that runs `nonstop up`, with a release that serves."""
    with Host(shop, tmp_path_factory.mktemp("host")) as made:
        assert made.ended(made.ask("deploy")) == "Completed"
        yield made


@pytest.fixture(scope="module")
def opened(host: Host) -> Iterator[Ui]:
    """The UI, for every test."""
    shutil.rmtree(SHOTS, ignore_errors=True)
    with browser(host.url.removesuffix("/api")) as ui:
        yield ui


@pytest.fixture
def ui(opened: Ui, request: pytest.FixtureRequest) -> Iterator[Ui]:
    """The UI; how it looked when a test failed is among the screenshots."""
    failed = request.session.testsfailed
    yield opened
    if request.session.testsfailed > failed:
        opened.shot(f"failed-{request.function.__name__}")
        print(opened.trouble)


def deployment(host: Host) -> str:
    """The id of the shop's deployment."""
    return str(host.get(f"deployments/name/deploy/{host.shop.name}")["id"])


def another(shop: Shop) -> str:
    """An image that does not serve."""
    return "nonstop-lab-hello:v1" if shop.get().text.endswith(",v2") else "nonstop-lab-hello:v2"


def answers(shop: Shop) -> str | None:
    """The release that answered once."""
    number: str | None = shop.get().headers.get("X-Nonstop-Release")
    return number


def test_the_ui_asks_the_address_that_it_came_from(host: Host) -> None:
    said = httpx.get(f"{host.url.removesuffix('/api')}/ui-settings", timeout=30).json()
    assert said["api_url"] == "/api"


def test_a_run_from_the_form_deploys_the_image_and_loses_no_visitor(
    ui: Ui, host: Host, shop: Shop
) -> None:
    image = another(shop)
    ui.form(deployment(host))
    first = ["image", "approve", "approve_within", "force", "override", "wait"]
    assert [label.removesuffix(" (Optional)") for label in ui.labels()][:6] == first
    ui.fill("image", image)
    ui.shot("1-form")
    with shop.visitors() as heard:
        ui.submit()
        ui.state("Completed")
        ui.shows(f"deploy {shop.name} {image}")
    ui.shot("1-run")
    assert heard.lost == 0, heard.losses
    assert shop.get().text.endswith(image.removeprefix("nonstop-lab-hello:v"))


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("image", "Hello:V1", "Validation failed for field 'image'. Failure reason: 'Hello:V1' "),
        ("Replicas", "0", "Validation failed for field 'app.replicas'. Failure reason: 0 is less "),
    ],
)
def test_the_form_refuses_wrong_input_in_words(
    ui: Ui, host: Host, label: str, value: str, words: str
) -> None:
    before = host.find("flow_runs")
    ui.form(deployment(host))
    ui.fill(label, value)
    ui.click("Submit")
    ui.shows(words, 2)
    ui.shot(f"2-refused-by-the-form-{label}")
    assert len(host.find("flow_runs")) == len(before)


def test_a_run_that_is_refused_says_why(ui: Ui, host: Host, shop: Shop) -> None:
    before = shop.live()
    ui.form(deployment(host))
    ui.fill("image", "hello:nowhere")
    run = ui.submit()
    ui.state("Refused")
    ui.logged(run, "hello:nowhere is not on this host")
    ui.shot("2-refused-by-the-run")
    assert "xception" not in ui.text().replace("encountered an exception", "")
    assert shop.live() == before


def test_a_paused_run_is_resumed_with_its_form_and_green_serves(
    ui: Ui, host: Host, shop: Shop
) -> None:
    before, image = shop.live() or 0, another(shop)
    ui.form(deployment(host))
    ui.fill("image", image)
    ui.switch("approve")
    with shop.visitors(kinds=["get", "post"]) as heard:
        ui.submit()
        ui.state("Paused")
        ui.shot("3-paused")
        assert shop.live() == before
        ui.click("Resume")
        ui.shows("is healthy and waits for a yes")
        ui.switch("Approve")
        ui.fill("By", "Kim")
        ui.fill("Why", "looks good")
        ui.shot("3-resume")
        ui.click("Submit")
        ui.state("Completed")
    assert heard.lost == 0, heard.losses
    assert shop.live() == before + 1
    report(ui, shop)
    ui.shows("Approved by Kim: looks good.")


def test_a_no_in_the_form_of_a_paused_run_keeps_the_release_that_serves(
    ui: Ui, host: Host, shop: Shop
) -> None:
    before = shop.live()
    run = host.ask("deploy", image=another(shop), approve=True)
    host.until(lambda: host.state(run) == "Paused", 120, "the pause")
    with shop.visitors(kinds=["get", "post"]) as heard:
        ui.run(run)
        ui.state("Paused")
        ui.click("Resume")
        ui.shows("is healthy and waits for a yes")
        ui.fill("By", "Kim")
        ui.fill("Why", "the logo is upside down")
        ui.shot("3-refuse")
        ui.click("Submit")
        ui.state("Failed")
    ui.logged(run, "was refused by Kim: the logo is upside down.")
    ui.shot("3-refused")
    assert heard.lost == 0, heard.losses
    assert shop.live() == before


def test_a_cancel_on_the_run_s_page_goes_back_and_loses_nobody(
    ui: Ui, host: Host, shop: Shop
) -> None:
    before, image = shop.live() or 0, another(shop)
    with shop.visitors(kinds=["get", "post"]) as heard:
        app = shop.described(image=image, verify={"bake_time": 180})
        run = host.ask("deploy", app=app)
        ui.run(run)
        host.until(lambda: answers(shop) == str(before + 1), 120, "the cutover")
        ui.click("Cancel")
        ui.shot("4-cancel")
        ui.click("Confirm")
        ui.state("Cancelled")
    ui.logged(run, f"roll-back {shop.name}-{before + 1}")
    ui.logged(run, "Finished in state Cancelled(")
    ui.shot("4-cancelled")
    assert "xception" not in ui.text()
    assert heard.lost == 0, heard.losses
    assert shop.live() == before
    listed(ui, f"deploy {shop.name} {image}", "Cancelled")


def listed(ui: Ui, name: str, state: str) -> None:
    """The history has a run of that name that ended so."""
    ui.open("runs")
    row = ui.page.locator(".state-list-item", has_text=name).filter(has_text=state).first
    expect(row).to_be_visible(timeout=20_000)


def report(ui: Ui, shop: Shop) -> None:
    """The newest report of the run whose page is open."""
    ui.tab("Artifacts")
    ui.page.get_by_text(f"report-{shop.name}", exact=True).first.click()
    ui.page.wait_for_url("**/artifacts/**")


def test_the_report_says_the_outcome_first_and_the_next_command_last(
    ui: Ui, host: Host, shop: Shop
) -> None:
    run = host.ask("deploy", image=another(shop))
    assert host.ended(run) == "Completed"
    ui.run(run)
    report(ui, shop)
    ui.shows(f"{shop.name}: succeeded")
    ui.shot("5-report")
    said = ui.text()
    order = [said.index(words) for words in (": succeeded", "Changed", "Steps", "To go back: ")]
    assert order == sorted(order)


def test_the_history_tells_app_image_and_outcome_of_every_run(
    ui: Ui, host: Host, shop: Shop
) -> None:
    image = (
        "nonstop-lab-hello:v2"
        if another(shop) == "nonstop-lab-hello:v1"
        else "nonstop-lab-hello:v1"
    )
    unchanged = host.ask("deploy", image=image)
    refused = host.ask("deploy", image="hello:nowhere")
    host.until(lambda: host.state(unchanged) == "Unchanged", 120, "Unchanged")
    host.until(lambda: host.state(refused) == "Refused", 120, "Refused")
    listed(ui, f"deploy {shop.name} {image}", "Unchanged")
    listed(ui, f"deploy {shop.name} hello:nowhere", "Refused")
    listed(ui, f"deploy {shop.name} nonstop-lab-hello:v1", "Completed")
    ui.shot("5-runs")
