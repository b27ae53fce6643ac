"""The inventory as a Prefect server takes it, and a run that a worker makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL

from flows.inventory import ENTRYPOINT, load
from tests.lab import history
from tests.lab.shop import Shop

ROOT = Path(__file__).parents[1]
ENTRIES: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def prefect_command(folder: Path, *arguments: str) -> str:
    """What a command of Prefect's own prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deployment(flow: str, name: str) -> dict[str, Any]:
    """A deployment as the server has it."""
    found: dict[str, Any] = (
        httpx.get(f"{PREFECT_API_URL.value()}/deployments/name/{flow}/{name}", timeout=30)
        .raise_for_status()
        .json()
    )
    return found


@pytest.fixture(scope="module")
def pool(prefect: None) -> None:
    """The work pool of the README."""
    prefect_command(ROOT, "work-pool", "create", "nonstop", "--type", "process", "--overwrite")


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["name"] for entry in ENTRIES])
def test_every_entry_loads_and_its_parameters_are_right(entry: dict[str, Any]) -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint(
        entry["entrypoint"], use_placeholder_flow=False
    )
    flow.validate_parameters(entry.get("parameters", {}))
    if entry["entrypoint"] == ENTRYPOINT:
        assert load(entry["parameters"]["app"]["name"], ROOT / "prefect.yaml").name


def test_prefect_deploy_hands_every_parameter_through_as_written(pool: None) -> None:
    prefect_command(ROOT, "deploy", "--all")
    for entry in ENTRIES:
        there = deployment(entry["entrypoint"].rpartition(".")[2], entry["name"])
        assert there["parameters"] == entry.get("parameters", {})
        assert there["entrypoint"] == entry["entrypoint"]
        (pull,) = there["pull_steps"]
        assert list(pull.values()) == [{"directory": str(ROOT)}]


def test_a_worker_deploys_and_rolls_back(shop: Shop, pool: None, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    content["pull"][0]["prefect.deployments.steps.set_working_directory"]["directory"] = str(ROOT)
    content["deployments"][0] |= {"name": "lab", "parameters": {"app": shop.described()}}
    content["deployments"][1] |= {"name": "lab", "parameters": {"app": shop.name}}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
    prefect_command(tmp_path, "deploy", "--all")
    for name, parameters, text in (
        ("deploy", {}, "app1,v1"),
        ("deploy", {"image": "nonstop-lab-hello:v2"}, "app1,v2"),
        ("rollback", {}, "app1,v1"),
    ):
        path = f"/deployments/{deployment(name, 'lab')['id']}/create_flow_run"
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        run = history.ask("POST", path, body)
        prefect_command(ROOT, "worker", "start", "--pool", "nonstop", "--run-once")
        state = history.ask("GET", f"/flow_runs/{run['id']}")
        assert state["state_name"] == "Completed", state["state"]
        assert text in {shop.get().text.removeprefix("Hi there, I love ! ") for _ in range(8)}
