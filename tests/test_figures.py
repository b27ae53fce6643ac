"""The commands behind the README's figures give figures; whether they are good is said there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def figures(command: str) -> Any:
    """What `make bench` would print of one command, of one run, as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.lab.{command}", "--runs", "1", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_deploy_is_measured_against_the_bare_engine_calls(api: Any) -> None:
    two, ten = figures("bench")
    assert (two["replicas"], ten["replicas"]) == (2, 10)
    for one in (two, ten):
        assert one["floor"] > 0
        assert one["floor"] / 2 < one["deploy"] < 10 * one["floor"] + 10  # others run beside it
        assert list(one["steps"]) == [
            *("preflight", "observe", "start-green", "health-check", "render-config"),
            *("reload-nginx", "verify-traffic", "teardown-blue"),
        ]


def test_every_door_is_measured_from_the_request_to_the_cutover(api: Any) -> None:
    doors = figures("latency")
    assert list(doors) == ["schedule", "Prefect UI", "webhook"]
    for door, ((first,), (seen,), (own,), (cutover,)) in doors.items():
        # Prefect begins a scheduled run up to a second early; nobody else is before the request.
        assert (-1 if door == "schedule" else 0) < first <= seen < cutover
        assert first <= own < cutover
