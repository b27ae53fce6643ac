"""The house: which part may know which, what every step has, what every field says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel

from flows.automations import _silent
from flows.names import ENDS, POSTPONED, UNCHANGED
from flows.reported import NAMES
from tasks.ask_approval import ask_approval
from tasks.bluegreen import errors
from tasks.bluegreen.app import App
from tasks.bluegreen.errors import EXIT_CODES, EngineHiccup, NonstopError, ReplicaCrashed
from tasks.compare import compare
from tasks.health_check import health_check
from tasks.observe import observe
from tasks.overtaken import SUPERSEDED
from tasks.preflight import preflight
from tasks.reload_nginx import reload_nginx
from tasks.render_config import render_config
from tasks.roll_back import roll_back
from tasks.start_green import start_green
from tasks.step import step
from tasks.teardown_blue import teardown_blue
from tasks.verify_traffic import verify_traffic

ROOT = Path(__file__).parents[1]
STEPS: dict[str, Task[..., Any]] = {
    "preflight": preflight,
    "observe": observe,
    "compare": compare,
    "start-green": start_green,
    "health-check": health_check,
    "render-config": render_config,
    "ask-approval": ask_approval,
    "reload-nginx": reload_nginx,
    "verify-traffic": verify_traffic,
    "teardown-blue": teardown_blue,
    "roll-back": roll_back,
}


def imported(file: Path) -> Iterator[str]:
    """Names of all modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_run_one_way() -> None:
    for file in (ROOT / "tasks").rglob("*.py"):
        names = set(imported(file))
        assert not {n for n in names if n.startswith(("flows", "tests"))}, file
        if file.parent.name == "bluegreen":
            inside = {n for n in names if n.startswith("tasks")}
            assert not {n for n in inside if not n.startswith("tasks.bluegreen.")}, file
            assert not {n for n in names if n.startswith("prefect")}, file
    for file in (ROOT / "flows").rglob("*.py"):
        assert not {n for n in imported(file) if n.startswith("tests")}, file


def test_the_top_level_is_the_frame_that_the_user_gave() -> None:
    frame = {"pyproject.toml", "flows", "tasks", "templates", "tests", "prefect.yaml", "README.md"}
    usual = {"Makefile", "LICENSE", "CHANGELOG.md", "constraints.txt"}
    there = {path.name for path in ROOT.iterdir() if not path.name.startswith((".", "__"))}
    assert frame <= there
    assert {n for n in there if not n.endswith(".egg-info")} <= frame | usual


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_bounded_and_named_as_in_the_ui(name: str) -> None:
    task = STEPS[name]
    assert task.name == name
    assert task.timeout_seconds
    assert task.cache_policy is NO_CACHE


@pytest.mark.parametrize(
    ("failure", "tries"),
    [(EngineHiccup("no answer"), 3), (ReplicaCrashed("exit code 1"), 1), (KeyError("bug"), 1)],
)
def test_only_what_may_pass_is_tried_again(prefect: None, failure: Exception, tries: int) -> None:
    tried = []

    @step("fails", timeout=60, retries=2)
    def fails() -> None:
        tried.append(1)
        raise failure

    @flow(name="tries")
    def run() -> None:
        fails()

    with pytest.raises(type(failure)):
        run()
    assert len(tried) == tries


def test_each_outcome_has_its_own_exit_code() -> None:
    assert sorted(EXIT_CODES.values()) == [0, 1, 2, 3]
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    for kind in kinds:
        if issubclass(kind, NonstopError):
            assert kind.outcome in EXIT_CODES
            assert kind.__name__ in (errors.__doc__ or "")


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Every field of a model and of the models within."""
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind)


def test_every_field_of_an_app_is_described() -> None:
    undescribed = [name for name, field in fields(App) if not field.description]
    assert not undescribed
    seconds = [field.description for _, field in fields(App) if "Seconds" in str(field)]
    assert all("econds" in text or "uration" in text for text in seconds)


def test_every_end_of_a_run_is_known_to_those_who_watch_for_silence() -> None:
    assert {*NAMES.values(), UNCHANGED, POSTPONED, SUPERSEDED} <= {*ENDS}
    expected = _silent().trigger.model_dump()["expect"]
    assert {f"prefect.flow-run.{name}" for name in ENDS} <= expected
