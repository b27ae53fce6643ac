"""What the Prefect server keeps of runs, as its UI shows it."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL

from tests.lab.plain import PLAIN


def request(method: str, url: str, body: Any = None) -> httpx.Response:
    """A server's answer; one whose SQLite is busy (503) is asked again, as Prefect's clients do."""
    for _ in range(20):
        answer = httpx.request(method, url, json=body, timeout=60, trust_env=False, verify=PLAIN)
        if answer.status_code != 503:
            break
        time.sleep(0.5)
    return answer


def ask(method: str, path: str, body: Any = None, code: int | None = None) -> Any:
    """What the tests' server answers; it must be a success, or have this status."""
    answer = request(method, f"{PREFECT_API_URL.value()}{path}", body)
    if code is None:
        answer.raise_for_status()
    else:
        assert answer.status_code == code, answer.text
    return answer.json() if answer.content else None


def runs(app: str, limit: int = 20) -> list[dict[str, Any]]:
    """The runs of an app, newest first."""
    body = {
        "flow_runs": {"tags": {"all_": [f"app:{app}"]}},
        "sort": "START_TIME_DESC",
        "limit": limit,
    }
    found: list[dict[str, Any]] = ask("POST", "/flow_runs/filter", body)
    return found


def steps(run: dict[str, Any]) -> list[str]:
    """Names of a run's task runs, in their order; the server hears of them a little later."""
    body = {"flow_runs": {"id": {"any_": [run["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found = ask("POST", "/task_runs/filter", body)
    return [step["name"] for step in sorted(found, key=lambda step: step["start_time"] or "~")]


def until_steps(run: dict[str, Any], last: str, count: int = 1, seconds: float = 20) -> list[str]:
    """The steps of a run once so many, and one whose name starts with `last`, are there."""
    deadline = time.monotonic() + seconds
    while True:
        found = steps(run)
        if len(found) >= count and any(name.startswith(last) for name in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def report(app: str) -> str:
    """The newest report of an app."""
    return artifact(f"report-{app}")


def artifact(key: str) -> str:
    """The newest artifact with this key."""
    body = {
        "artifacts": {"key": {"any_": [key]}},
        "sort": "CREATED_DESC",
        "limit": 1,
    }
    found = ask("POST", "/artifacts/filter", body)
    assert found, f"no artifact {key}"
    text: str = found[0]["data"]
    return text


def everything(limit: int = 3) -> str:
    """All that the server keeps of the newest runs: parameters, states, logs, artifacts."""
    APILogHandler().flush()
    begun = {"start_time": {"is_null_": False}}  # also a run of tomorrow is newer
    body = {"flow_runs": begun, "sort": "START_TIME_DESC", "limit": limit}
    newest = ask("POST", "/flow_runs/filter", body)
    of_runs = {"id": {"any_": [run["id"] for run in newest]}}
    return json.dumps(
        [
            newest,
            ask("POST", "/task_runs/filter", {"flow_runs": of_runs}),
            ask("POST", "/logs/filter", {"logs": {"flow_run_id": of_runs["id"]}}),
            ask("POST", "/artifacts/filter", {"flow_runs": of_runs}),
        ],
        ensure_ascii=False,
    )
