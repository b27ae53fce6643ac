"""A deploy is killed at some moment; the next one ends clean and no visitor noticed either."""

from __future__ import annotations

import time

import pytest

from tests.lab.command import Command


def die_after(command: Command, seconds: float) -> None:
    """A deploy is killed so long after its first sentence, then another follows."""
    shop = command.shop
    shop.deploy("zero")
    command.describe(verify={"bake_time": 1}, environment={"RELEASE": "dead"})
    with shop.visitors(kinds=["get", "fresh", "post"]) as heard:
        process = command.start("deploy", shop.name)
        assert process.stderr
        assert "replaces" in process.stderr.readline()
        time.sleep(seconds)
        process.kill()
        process.communicate(timeout=10)
        report = shop.deploy("next")
    assert heard.lost == 0, heard.losses
    assert shop.releases() == {"next"}
    running = {name for name, state in shop.containers().items() if state == "running"}
    assert running == {f"{report.release}-1", f"{report.release}-2"}
    assert len(shop.containers()) <= 4


@pytest.mark.parametrize("seconds", [0.4, 1.0, 1.6, 2.6])
def test_whenever_a_run_dies_the_next_ends_clean(command: Command, seconds: float) -> None:
    die_after(command, seconds)


@pytest.mark.long
@pytest.mark.parametrize("step", range(40))
def test_at_every_moment_a_run_may_die(command: Command, step: int) -> None:
    die_after(command, step * 0.1)
