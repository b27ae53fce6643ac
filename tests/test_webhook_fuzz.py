"""Webhooks: whatever is sent, no server error, and no run without a proof."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.deliveries import REGISTRIES, WAYS, Pushed, Signed, github_event, standard
from tests.lab.webhooks import Receiver, Waiting

TRIED: Counter[str] = Counter()
MANY = settings(
    max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "a:b@c", "../x", "[::1]/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("authorization", "x-gitlab-token", "x-hub-signature-256", "content-type"),
        *("webhook-id", "webhook-timestamp", "webhook-signature", "idempotency-key"),
        *("x-github-event", "x-github-delivery"),
    ]
)
HEADERS = st.dictionaries(NAMES, st.text(st.characters(codec="latin-1"), max_size=60), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def counted(receiver: Receiver) -> Any:
    yield
    print(f"\nfuzzed: {dict(TRIED)}")


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_the_openapi_is_true(receiver: Receiver, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{receiver.url}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) == len(WAYS) + 3
    for operation in operations:
        if mode.is_negative and not operation.body:
            continue  # nothing can be wrong where nothing is given

        @settings(MANY, max_examples=100)
        @given(operation.as_strategy(generation_mode=mode))
        def tried(case: Any) -> None:
            TRIED["openapi"] += 1
            case.call_and_validate()

        tried()


def post(receiver: Receiver, signed: Signed) -> httpx.Response:
    """The answer; headers that HTTP itself does not allow are left out."""
    sent = {
        name.encode(): value.encode("latin-1")
        for name, value in signed.headers.items()
        if value.isprintable() and value == value.strip()
    }
    return receiver.client.post(
        f"/webhooks/{signed.sender}", content=signed.body, headers=sent, params=signed.query
    )


@pytest.mark.parametrize("sender", WAYS)
def test_no_body_and_no_headers_pass_for_a_proof(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    right = WAYS[sender](Pushed(app.path), receiver.secrets[sender]).body

    @MANY
    @given(st.binary(max_size=200) | st.just(right), HEADERS, st.text(max_size=40))
    def tried(body: bytes, headers: dict[str, str], token: str) -> None:
        TRIED["without a proof"] += 1
        answer = post(receiver, Signed(sender, body, headers, {"token": token}))
        assert answer.status_code == 401, answer.text

    tried()
    assert app.runs() == []


@pytest.mark.parametrize("sender", WAYS)
def test_no_payload_of_a_proven_sender_breaks_it(receiver: Receiver, sender: str) -> None:
    secret = receiver.secrets[sender]
    documented = json.loads(WAYS[sender](Pushed("team/nobody"), secret).body)

    @MANY
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        TRIED["with a proof"] += 1
        payload = json.loads(json.dumps(documented))
        for _ in range(data.draw(st.integers(1, 3))):
            spoil(payload, data)
        body = json.dumps(payload).encode()
        answer = post(receiver, resigned(sender, body, payload, secret))
        assert answer.status_code == 200, answer.text

    tried()


def spoil(payload: Any, data: st.DataObject) -> None:
    """One value somewhere in it is another, or gone."""
    while isinstance(payload, dict | list) and payload:
        keys = list(payload) if isinstance(payload, dict) else list(range(len(payload)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(payload[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            payload[key] = data.draw(VALUES)
            return
        payload = payload[key]


def resigned(sender: str, body: bytes, payload: Any, secret: str) -> Signed:
    """The delivery as the sender would have made it with this body."""
    if sender == "github":
        return github_event(payload, secret, "registry_package")
    signed = WAYS[sender](Pushed("team/nobody"), secret)
    if sender == "generic":
        signed = replace(signed, headers=signed.headers | standard(body, secret, "one-id"))
    return replace(signed, body=body)
