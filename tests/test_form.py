"""The run form: what the Prefect UI makes of the flows' parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.deployments.runner import RunnerDeployment
from prefect.utilities.callables import parameter_schema

from flows.deploy import deploy, rollback
from flows.recover import recover
from tests.lab import history
from tests.lab.shop import Shop

DEPLOY = parameter_schema(deploy.fn).model_dump_for_openapi()
ROLLBACK = parameter_schema(rollback.fn).model_dump_for_openapi()
RECOVER = parameter_schema(recover.fn).model_dump_for_openapi()
FLOWS = {"deploy": DEPLOY, "rollback": ROLLBACK, "recover": RECOVER}


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field of a form: its place, its schema, and whether it must be filled in."""
    parts = {"": schema} | schema["definitions"]
    for name, part in parts.items():
        for field, of in part.get("properties", {}).items():
            yield f"{name}.{field}", of, field in part.get("required", [])


def order(schema: dict[str, Any]) -> list[str]:
    found: dict[str, Any] = schema["properties"]
    return sorted(found, key=lambda name: int(found[name]["position"]))


def test_the_image_comes_first_and_the_app_s_many_fields_last() -> None:
    assert order(DEPLOY) == [
        *("image", "approve", "approve_within", "force", "override", "wait"),
        "app",
    ]
    assert order(ROLLBACK) == ["app", "to", "approve", "approve_within", "wait"]


@pytest.mark.parametrize("flow", FLOWS)
def test_every_field_has_a_title_a_description_and_a_default_or_must_be_given(flow: str) -> None:
    for name, field, required in fields(FLOWS[flow]):
        assert field.get("title") or "$ref" in field, name
        assert field.get("description"), name
        assert required or "default" in field, name


def test_numbers_say_their_unit_and_choices_are_choices() -> None:
    units = ("econds", "umber", "bytes", "ort", "CPUs", "hare", "rounds", "ounds", "ailures",
             "Containers", "releases", "limit", "odes")  # fmt: skip
    for name, field, _ in fields(DEPLOY):
        kinds = [field, *field.get("anyOf", [])]
        if any(kind.get("type") in ("number", "integer") for kind in kinds):
            assert any(unit in field["description"] for unit in units), name
    app = DEPLOY["definitions"]["App"]["properties"]
    assert app["pull_policy"]["enum"] == ["always", "missing", "never"]


def test_no_field_asks_for_a_secret_itself() -> None:
    for name, field, _ in fields(DEPLOY):
        assert field.get("format") != "password", name
    environment = DEPLOY["definitions"]["App"]["properties"]["environment"]["description"]
    assert "never the secret itself" in environment


@pytest.mark.parametrize(
    ("changes", "parameters", "words"),
    [
        ({"replicas": 0}, {}, "0 is less than the minimum of 1"),
        ({"pull_policy": "sometimes"}, {}, "'sometimes' is not one of"),
        ({"prot": 80}, {}, "'prot' was unexpected"),
        (
            {"hosts": ["shop.example.com", "https://shop"]},
            {},
            "'app.hosts[1]'. Failure reason: 'https://shop' does",
        ),
        ({"extra_hosts": ["db 10.0.0.1"]}, {}, "'app.extra_hosts[0]'. Failure reason: 'db 10"),
        ({"volumes": ["data:relative"]}, {}, "'data:relative' does not match"),
        ({"window": [{"time_zone": "UTC + 2"}]}, {}, "'UTC + 2' does not match"),
        ({"health": {"path": "no slash"}}, {}, "'no slash' does not match"),
        ({}, {"wait": -1}, "-1 is less than the minimum of 0"),
        ({}, {"force": "perhaps"}, "'perhaps' is not of type 'boolean'"),
    ],
)
def test_the_server_refuses_wrong_input_in_words(
    shop: Shop, changes: dict[str, Any], parameters: dict[str, Any], words: str
) -> None:
    deployment = RunnerDeployment.from_flow(deploy, f"form-{shop.name}").apply()
    body = {"parameters": {"app": shop.described(**changes), **parameters}}
    said = history.ask("POST", f"/deployments/{deployment}/create_flow_run", body, code=409)
    assert words in said["detail"]


def test_the_server_takes_compose_s_other_spellings(shop: Shop) -> None:
    deployment = RunnerDeployment.from_flow(deploy, f"form-{shop.name}").apply()
    changes = {"hosts": "shop.localhost", "extra_hosts": {"db": "10.0.0.1"}, "tmpfs": "/tmp"}
    described = shop.described(**changes) | {"environment": ["A=1"], "labels": ["b=2"]}
    body = {"parameters": {"app": described}, "state": {"type": "PAUSED"}}
    made = history.ask("POST", f"/deployments/{deployment}/create_flow_run", body, code=201)
    assert made["parameters"]["app"] == described
