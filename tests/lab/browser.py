"""The Prefect UI in a real browser, as a colleague meets it: Debian's Chromium, no other host."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Response, TimeoutError, expect, sync_playwright

from tests.lab.engine import apt_install
from tests.lab.needs import cannot_run

SHOTS = Path(__file__).parents[2] / ".screenshots"
CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",  # root has none
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other host is asked
)
PATIENCE = 60.0  # seconds until a page shows what it is waited for
SIZE = (1280, 1000)


def ensure_chromium() -> None:
    """Debian's Chromium is installed; where it cannot be, the test cannot run, with the reason."""
    if Path(CHROMIUM).exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        cannot_run(f"no {CHROMIUM}: install it (Debian: `apt-get install chromium`)")
    apt_install("chromium")


@contextmanager
def browser(address: str) -> Iterator[Ui]:
    """The UI of the Prefect server at `address`, which is on 127.0.0.1."""
    ensure_chromium()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        context = chromium.new_context(viewport={"width": SIZE[0], "height": SIZE[1]})
        context.set_default_timeout(PATIENCE * 1000)
        try:
            yield Ui(context.new_page(), address)
        finally:
            chromium.close()


class Ui:
    """A page of the UI, and what people do there.

    Args:
        page: the browser's.
        address: of the server, without a path.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.trouble: list[str] = []
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("requestfailed", lambda request: self.trouble.append(request.url))
        page.on("response", self._answered)

    def _answered(self, answer: Response) -> None:
        if answer.status >= 400:
            self.trouble.append(f"{answer.status} {answer.url}")

    def open(self, path: str) -> None:
        """Another page of the UI, from the start; one that stays empty is asked for again."""
        for _ in range(3):
            self.page.goto(f"{self.address}/{path}")
            with suppress(TimeoutError):
                self.page.get_by_text("Dashboard").first.wait_for(timeout=PATIENCE * 1000 / 3)
                return
        pytest.fail(f"{path} stays empty: {self.trouble[-5:]}")

    def shot(self, name: str) -> None:
        """What the page looks like now, as .screenshots/NAME.png."""
        self.page.wait_for_timeout(500)  # what moves has come to rest
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def text(self) -> str:
        """All that the page says."""
        return self.page.locator("body").inner_text()

    def shows(self, words: str | re.Pattern[str], seconds: float = PATIENCE) -> None:
        """The words are to be read within so many seconds."""
        there = self.page.get_by_text(words).locator("visible=true").first
        expect(there).to_be_visible(timeout=seconds * 1000)

    def click(self, button: str) -> None:
        """The button with this name was pressed."""
        self.page.get_by_role("button", name=button, exact=True).last.click()

    def tab(self, name: str) -> None:
        """The tab with this name is open."""
        self.page.locator(".p-tab-navigation__tab, .p-tab").filter(
            has_text=re.compile(f"^{name}$")
        ).first.click()

    # Forms

    def form(self, deployment: str) -> None:
        """The form that runs a deployment with parameters of one's own."""
        self.open(f"deployments/deployment/{deployment}/run")
        self.labels()

    def labels(self) -> list[str]:
        """The fields of the form, in their order; those within the app's card too."""
        found = self.page.locator(".schema-form-property__label")
        found.first.wait_for()
        return found.all_inner_texts()

    def field(self, label: str) -> Locator:
        """The field with this label; its innermost frame."""
        exactly = re.compile(rf"^{label}( \(Optional\))?$")
        named = self.page.locator(".schema-form-property__label").filter(has_text=exactly)
        return self.page.locator(".p-label.schema-form-property").filter(has=named).last

    def fill(self, label: str, value: str) -> None:
        """The field has this value."""
        self.field(label).locator("textarea, input").first.fill(value)

    def switch(self, label: str) -> None:
        """The switch was turned."""
        self.field(label).get_by_role("switch").click()

    # Runs

    def submit(self) -> str:
        """A run of the form that is open, whose page is open then; its id."""
        while True:
            with self.page.expect_response("**/create_flow_run") as answer:
                self.click("Submit")
            if answer.value.status != 503:  # two wrote to SQLite at once: people press it again
                break
        run = str(answer.value.json()["id"])
        self.run(run)  # the button that leads there goes by itself, on a slow machine unseen
        return run

    def run(self, run: str) -> None:
        """The page of a run."""
        self.open(f"runs/flow-run/{run}")

    def logged(self, run: str, words: str) -> None:
        """The run's log has the words: one that came after its end the page shows when reloaded."""
        for _ in range(2):
            with suppress(AssertionError):
                self.shows(words, PATIENCE / 3)
                return
            self.run(run)
        self.shows(words)

    def state(self, name: str, seconds: float = PATIENCE) -> None:
        """The page of a run says that it is in this state, within so many seconds."""
        badge = self.page.locator(".page-heading-flow-run .state-badge, .state-badge").first
        expect(badge).to_have_text(name, timeout=seconds * 1000)
