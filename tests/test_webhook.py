"""Webhooks: who may ask for a deploy, of what, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.deliveries import DIGEST, REGISTRIES, WAYS, Pushed
from tests.lab.webhooks import Receiver, Waiting

TOLD = {"github", "harbor", "distribution", "generic"}  # who tell the digest


@pytest.fixture(scope="module")
def receiver(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("secrets")) as running:
        yield running


@pytest.mark.parametrize("sender", WAYS)
def test_a_push_becomes_a_run_with_the_pushed_digest(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    answer = receiver.send(WAYS[sender](Pushed(app.path), receiver.secrets[sender]))
    assert answer.status_code == 202, answer.text
    (run,) = app.runs()
    told = answer.json()
    assert told["outcome"] == "accepted"
    assert told["runs"][0]["app"] == app.name
    assert told["runs"][0]["run"] == str(run.id)
    assert answer.headers["Location"].endswith(str(run.id))
    digest = f"@{DIGEST}" if sender in TOLD else ""
    assert run.parameters["image"] == f"{app.image}:1.5{digest}"
    assert run.parameters["wait"] >= 300
    assert run.state_name == "Scheduled"
