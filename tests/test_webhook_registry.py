"""Webhooks: `docker push` to a real registry that tells us, and the visitors notice nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.registry import Registry
from tests.lab.shop import Shop
from tests.lab.webhooks import Receiver, Waiting, worker


@pytest.fixture
def registry(receiver: Receiver, api: Any) -> Iterator[Registry]:
    """A registry that tells the receiver; it outlives the shop, whose images are its own."""
    told = f"{receiver.url}/webhooks/distribution", receiver.secrets["distribution"]
    with Registry(api, notify=told) as running:
        yield running


def test_docker_push_is_live_without_a_lost_request(registry: Registry, shop: Shop) -> None:
    pool = f"lab-{os.getpid()}"
    mine: dict[str, Any] = {"pull_policy": "always", "replicas": 1, "image": registry.push("one")}
    shop.deploy(**mine)
    with worker(pool), shop.visitors() as heard:
        app = Waiting(tags="t*", pool=pool, **shop.described(**mine))
        registry.push("other")  # no tag that the app waits for
        began = time.monotonic()
        registry.push("two")
        pushed = time.monotonic()
        while not app.runs():
            time.sleep(0.02)
        asked = time.monotonic()
        while shop.get().headers["X-Release"] != "two":
            assert time.monotonic() - pushed < 120, app.states()
            time.sleep(0.05)
        live = time.monotonic()
        while app.states() != {"two": "Completed"}:
            assert time.monotonic() - pushed < 180, app.states()
            time.sleep(0.2)
    (run,) = app.runs()
    assert run.parameters["image"] == f"{registry.address}/shop:two@{registry.digest('two')}"
    assert shop.releases() == {"two"}
    assert heard.lost == 0, heard.losses
    assert heard.requests > 300
    print(
        f"docker push took {pushed - began:.1f} s; then the run was there after "
        f"{asked - pushed:.1f} s, live after {live - pushed:.1f} s; {heard.requests} requests, "
        f"{heard.lost} lost"
    )
