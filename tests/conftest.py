"""Real parts for every test: an engine, an nginx per test, and one Prefect server."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import engine, images, tally
from tests.lab.command import Command
from tests.lab.served import Served
from tests.lab.server import prefect_of_its_own
from tests.lab.shop import Shop, Standing
from tests.lab.tally import Case
from tests.lab.webhooks import Receiver, Waiting

# A shell that starts the tests in the background makes them and their commands ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A Prefect server of the tests' own."""
    with prefect_of_its_own():
        yield


@pytest.fixture(scope="session")
def served(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A runner that serves the flows."""
    with Served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="session")
def api() -> Iterator[Any]:
    """A client of an engine that has the lab's images."""
    client = engine.ensure_engine()
    images.ensure_images(client)
    yield client
    for network in client.networks(names=[f"nonstop-lab-{os.getpid()}"]):
        client.remove_network(network["Id"])


@pytest.fixture
def shop(prefect: None, api: Any) -> Iterator[Shop]:
    """An app that is not deployed yet."""
    made = Shop(api)
    yield made
    made.close()


@pytest.fixture(scope="session")
def _standing(prefect: None, api: Any) -> Iterator[Standing]:
    made = Standing(api)
    yield made
    made.close()


@pytest.fixture
def serving(_standing: Standing) -> Shop:
    """An app whose release 1, called one, serves; maybe with a past of other tests."""
    return _standing.shop()


@pytest.fixture(scope="session")
def receiver(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """A receiver of webhooks, with a secret for every sender."""
    with Receiver(tmp_path_factory.mktemp("secrets")) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    yield
    Waiting.remove_all()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[list[Case]], None]:
    """Takes cases, whose figures are shown below the results of all tests."""

    def take(cases: list[Case]) -> None:  # workers hand on nothing but plain values
        if cases:
            request.node.user_properties.append((tally.PROPERTY, [tuple(case) for case in cases]))

    return take


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = list(tally.table(terminalreporter.stats))
    if lines:
        terminalreporter.section("what was survived")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """The nonstop command, for the app that the test has."""
    shop = "serving" if "serving" in request.fixturenames else "shop"
    made = Command(request.getfixturevalue(shop), tmp_path)
    made.describe()
    return made
