"""The runner registers what `prefect deploy --all` would, and keeps it in step with the file."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.deployments.runner import RunnerDeployment

from flows import running
from flows.inventory import deployments, load
from flows.registered import remember
from flows.runner import served, settle_schedules
from tasks.bluegreen.errors import BadInput
from tests.lab import history
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
        history.ask("DELETE", f"/deployments/{one['id']}")
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
    file = tmp_path / "prefect.yaml"

    def register(**changes: Any) -> dict[str, Any]:
        file.write_text(yaml.safe_dump({"deployments": [RICH | changes]}))
        (one,) = served(file)
        asyncio.run(settle_schedules(one))
        one.apply()
        return deployment("rollback", "rich")

    def active(there: dict[str, Any]) -> list[bool]:
        return [one["active"] for one in sorted(there["schedules"], key=lambda one: str(one))]

    there = register()
    before = active(there)
    history.ask("POST", f"/deployments/{there['id']}/pause_deployment")
    for one in there["schedules"]:
        path = f"/deployments/{there['id']}/schedules/{one['id']}"
        history.ask("PATCH", path, {"active": False})
    for _ in range(2):
        there = register()
        assert (there["paused"], active(there)) == (True, [False] * 3)
    on = [one | {"active": True} for one in RICH["schedules"]]
    there = register(paused=False, schedules=on)
    assert (there["paused"], active(there)) == (False, [True] * 3)
    assert sorted(before) == [False, True, True]
    registered([RICH])


def test_what_leaves_an_inventory_leaves_the_server_unless_it_is_anothers(
    prefect: None, tmp_path: Path
) -> None:
    names = {name: f"{name}-{os.getpid()}" for name in ("goes", "stays", "shared", "by-hand")}
    for name in names.values():
        RunnerDeployment.from_entrypoint("flows.deploy.rollback", name=name).apply()

    def remembered(file: str, *left: str) -> set[str]:
        asyncio.run(remember(tmp_path / file, [f"rollback/{names[name]}" for name in left]))
        there = {one["name"] for one in history.ask("POST", "/deployments/filter", {})}
        return {name for name, full in names.items() if full in there}

    remembered("one.yaml", "goes", "stays", "shared")
    remembered("two.yaml", "shared")
    assert remembered("one.yaml", "stays") == {"stays", "shared", "by-hand"}
    assert remembered("one.yaml", "stays") == {"stays", "shared", "by-hand"}
    assert remembered("one.yaml") == {"shared", "by-hand"}
    assert remembered("two.yaml") == {"by-hand"}
    assert remembered("two.yaml", "goes") == {"by-hand"}  # and somebody removed it meanwhile
    assert remembered("two.yaml") == {"by-hand"}
    registered([{"name": names["by-hand"], "entrypoint": "flows.deploy.rollback"}])


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


# As YAML reads it, as Compose writes it, and as a variable of the environment is filled in.
SPELLED = """
deployments:
  - name: spelled
    entrypoint: flows.deploy.deploy
    parameters:
      app:
        name: spelled
        image: shop:1
        port: "8000"
        replicas: "{{ $SPELLED_REPLICAS }}"
        cpus: "0.5"
        healthcheck: {test: "true", retries: "5"}
        ulimits: {nofile: "1024", nproc: {soft: "-1", hard: -1}}
        verify: {failures: "2", tolerance: ".05"}
        proxy: {listen: "8080"}
        window:
          - {days: [sat], opens: 22:00, closes: 04:00}
          - {days: [sun], opens: "09:00", closes: 17:30}
"""


def test_every_spelling_that_a_deploy_takes_the_server_takes(
    prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPELLED_REPLICAS", "3")
    file = tmp_path / "prefect.yaml"
    file.write_text(SPELLED)
    (entry,) = deployments(file)
    assert load("spelled", file).window[0].opens == "22:00"
    (one,) = served(file)
    for _ in range(2):  # made, and changed
        one.apply()
    there = deployment("deploy", "spelled")
    assert there["parameters"] == entry["parameters"]
    asked = {"parameters": {"image": "shop:2"}, "state": {"type": "PAUSED"}}
    history.ask("POST", f"/deployments/{there['id']}/create_flow_run", asked, code=201)
    history.ask("DELETE", f"/deployments/{there['id']}")
    prefect_command(tmp_path, "work-pool", "create", "nonstop", "--type", "process", "--overwrite")
    prefect_command(tmp_path, "deploy", "--all", "--pool", "nonstop")
    assert registered([entry])[0]["parameters"] == entry["parameters"]


@pytest.mark.parametrize(
    ("entrypoint", "parameters", "words"),
    [
        (
            "deploy",
            {"app": {"read_only": "true"}},
            "app.read_only: is not of type 'boolean' (given",
        ),
        ("deploy", {"app": {"init": "yes"}}, "app.init: is not of type 'boolean' (given: 'yes')"),
        ("deploy", {"app": {}, "approve": 1}, "approve: is not of type 'boolean' (given: 1)"),
        ("deploy", {"app": {"cpus": float("inf")}}, "cpus: input should be a finite number"),
        (
            "deploy",
            {"app": {"environment": {"A": ["s3cret"], "B": "s3cret"}}},
            "app.environment.A: ",
        ),
        (
            "deploy",
            {"app": {"ports": []}},
            "app: Additional properties are not allowed ('ports' was",
        ),
        ("rollback", {"app": "shop", "to": "3"}, "to: is not of type 'integer' (given: '3')"),
        ("rollback", {"app": "Shop!"}, "app: does not match"),
    ],
)
def test_a_value_that_the_server_would_refuse_is_refused_before_it_is_asked(
    entrypoint: str, parameters: dict[str, Any], words: str, tmp_path: Path
) -> None:
    if isinstance(app := parameters["app"], dict):
        parameters = parameters | {"app": {"name": "shop", "image": "shop:1", "port": 80} | app}
    entry = {"name": "shop", "entrypoint": f"flows.deploy.{entrypoint}", "parameters": parameters}
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [entry]}))
    with pytest.raises(BadInput) as refused:
        served(file)
    assert words in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_what_the_server_is_told_not_to_look_at_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    entry = RICH | {"parameters": {"app": "shop", "to": "3"}, "enforce_parameter_schema": False}
    file.write_text(yaml.safe_dump({"deployments": [entry]}))
    assert served(file)


def schedules(file: Path, *wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the server has of schedules, by slug or cron, once a runner registered these."""
    file.write_text(yaml.safe_dump({"deployments": [RICH | {"schedules": list(wanted)}]}))
    (one,) = served(file)
    asyncio.run(settle_schedules(one))
    one.apply()
    there = deployment("rollback", "rich")["schedules"]
    found = {one["slug"] or one["schedule"]["cron"]: one for one in there}
    assert len(found) == len(there)
    return found


def test_a_schedule_that_left_the_inventory_fires_no_more(prefect: None, tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    one = {"cron": "0 1 * * *", "slug": "one"}
    two = {"cron": "0 2 * * *", "slug": "two"}
    three = {"cron": "0 3 * * *", "slug": "three"}
    plain = [{"cron": each["cron"]} for each in (one, two)]
    assert set(schedules(file, one, two | {"parameters": {"to": 3}})) == {"one", "two"}
    there = deployment("rollback", "rich")
    kept = {each["slug"]: each["id"] for each in there["schedules"]}
    path = f"/deployments/{there['id']}/schedules/{kept['two']}"
    history.ask("PATCH", path, {"active": False})
    found = schedules(file, two, three)
    assert set(found) == {"two", "three"}
    assert (found["two"]["id"], found["two"]["active"]) == (kept["two"], False)
    assert not found["two"]["parameters"]
    renamed = two | {"slug": "second", "replaces": "two"}
    for _ in range(2):  # and once it was
        assert set(found := schedules(file, renamed)) == {"second"}
        assert (found["second"]["id"], found["second"]["active"]) == (kept["two"], False)
    found = schedules(file, *plain)  # none has a slug any more
    assert {when: each["active"] for when, each in found.items()} == {
        one["cron"]: True,
        two["cron"]: False,
    }
    assert set(schedules(file, one, two)) == {"one", "two"}  # nor had any before
    assert set(schedules(file, one, plain[1])) == {"one", two["cron"]}
    assert set(schedules(file, one)) == {"one"}
    assert schedules(file) == {}
    registered([RICH])


def test_a_run_that_a_dead_runner_was_about_to_begin_is_begun(
    prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LONG", timedelta(seconds=12))  # a minute
    one = RunnerDeployment.from_entrypoint("flows.deploy.rollback", name=f"late-{os.getpid()}")

    def state(run: dict[str, Any]) -> str:
        return str(history.ask("GET", f"/flow_runs/{run['id']}")["state_type"])

    async def serve() -> list[str]:
        runner, stop = running.Runner(), asyncio.Event()
        await runner.register(one)
        body = {"parameters": {"app": "nobody-has"}, "state": {"type": "PENDING"}}
        path = f"/deployments/{next(iter(runner.ours))}/create_flow_run"
        made = await asyncio.to_thread(history.ask, "POST", path, body)
        began, serving = time.monotonic(), asyncio.create_task(runner.serve(stop))
        while (found := await asyncio.to_thread(state, made)) != "FAILED":
            assert found == "PENDING" or time.monotonic() - began > 12
            assert time.monotonic() - began < 90, found
            await asyncio.sleep(0.5)
        stop.set()
        await serving
        states = await asyncio.to_thread(
            history.ask, "GET", f"/flow_run_states/?flow_run_id={made['id']}"
        )
        return [each["name"] for each in states]

    names = asyncio.run(serve())
    assert names[:2] == ["Pending", "Scheduled"]
    assert names[-1] == "Refused"  # as it ends by itself: nobody has the app
    registered([{"name": one.name, "entrypoint": one.entrypoint}])
