"""Real parts for every test: an engine, an nginx per test, and one Prefect server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from tests.lab import engine, images
from tests.lab.shop import Shop


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A Prefect server of the tests' own."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


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
