"""The runner registers what `prefect deploy --all` would, and keeps it in step with the file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from flows.runner import keep_paused_schedules, served
from tasks.bluegreen.errors import BadInput
from tests.test_prefect_yaml import ENTRIES, ROOT, deployment, prefect_command

RICH: dict[str, Any] = {
    "name": "rich",
    "entrypoint": "flows.deploy.rollback",
    "description": "Everything that an entry may have",
    "version": "7",
    "tags": ["one", "two"],
    "parameters": {"app": "shop"},
    "concurrency_limit": {"limit": 2, "collision_strategy": "CANCEL_NEW"},
    "schedules": [
        {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "parameters": {"to": 3}},
        {"interval": 3600, "active": False, "slug": "hourly"},
        {"rrule": "FREQ=DAILY;COUNT=3", "timezone": "UTC"},
    ],
    "work_pool": {"name": "nonstop"},
}
SAME = (
    "entrypoint",
    "parameters",
    "description",
    "version",
    "tags",
    "concurrency_options",
    "enforce_parameter_schema",
    "parameter_openapi_schema",
    "paused",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with the repository's inventory and the rich entry."""
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    content["deployments"].append(RICH)
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def registered(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries as the server has them, as far as they come from the file; then they are gone."""
    found = []
    for entry in entries:
        one = deployment(entry["entrypoint"].rpartition(".")[2], entry["name"])
        schedules = [
            {key: schedule[key] for key in ("schedule", "active", "parameters", "slug")}
            for schedule in one["schedules"]
        ]
        for schedule in schedules:
            schedule["schedule"].pop("anchor_date", None)  # the moment of its making
        limit = (one["global_concurrency_limit"] or {}).get("limit")
        found.append(
            {key: one[key] for key in SAME}
            | {"schedules": sorted(schedules, key=str), "limit": limit}
        )
        httpx.delete(f"{PREFECT_API_URL.value()}/deployments/{one['id']}", timeout=30)
    return found


def test_the_runner_registers_what_prefect_deploy_does(
    prefect: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the version, where an entry names none, is the directory's commit
    entries = [*ENTRIES, RICH]
    prefect_command(folder, "work-pool", "create", "nonstop", "--type", "process", "--overwrite")
    prefect_command(folder, "deploy", "--all")
    theirs = registered(entries)
    for one in served(folder / "prefect.yaml"):
        one.apply()
    assert registered(entries) == theirs


def test_what_is_taken_out_of_an_entry_is_gone(prefect: None, folder: Path) -> None:
    file = folder / "prefect.yaml"
    for entry in (RICH, {key: RICH[key] for key in ("name", "entrypoint", "parameters")}):
        file.write_text(yaml.safe_dump({"deployments": [entry]}))
        (one,) = served(file)
        one.apply()
    (there,) = registered([RICH])
    assert (there["schedules"], there["limit"], there["tags"]) == ([], None, [])


def test_what_somebody_paused_stays_so_unless_the_inventory_says_otherwise(
    prefect: None, tmp_path: Path
) -> None:
    file, url = tmp_path / "prefect.yaml", f"{PREFECT_API_URL.value()}/deployments"

    def register(**changes: Any) -> dict[str, Any]:
        file.write_text(yaml.safe_dump({"deployments": [RICH | changes]}))
        (one,) = served(file)
        asyncio.run(keep_paused_schedules(one))
        one.apply()
        return deployment("rollback", "rich")

    def active(there: dict[str, Any]) -> list[bool]:
        return [one["active"] for one in sorted(there["schedules"], key=lambda one: str(one))]

    there = register()
    before = active(there)
    httpx.post(f"{url}/{there['id']}/pause_deployment", timeout=30).raise_for_status()
    for one in there["schedules"]:
        path = f"{url}/{there['id']}/schedules/{one['id']}"
        httpx.patch(path, json={"active": False}, timeout=30).raise_for_status()
    for _ in range(2):
        there = register()
        assert (there["paused"], active(there)) == (True, [False] * 3)
    on = [one | {"active": True} for one in RICH["schedules"]]
    there = register(paused=False, schedules=on)
    assert (there["paused"], active(there)) == (False, [True] * 3)
    assert sorted(before) == [False, True, True]
    registered([RICH])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entrypoint": "flows.nowhere.deploy"}, "No module named 'flows.nowhere'"),
        ({"entrypoint": None}, "rich (None) cannot be run"),
        ({"schedules": [{"corn": "0 3 * * *"}]}, "corn"),
        ({"concurrency_limit": {"limit": "many"}}, "limit: input should be a valid integer"),
        ({"entrypoint": "flows.deploy.deploy", "parameters": {"app": {}}}, "name: field required"),
        ({"entrypoint": "flows.deploy.deploy", "parameters": None}, "rich has no `app`"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [RICH | changes]}))
    with pytest.raises(BadInput, match=r".+") as refused:
        served(file)
    assert words in str(refused.value)
