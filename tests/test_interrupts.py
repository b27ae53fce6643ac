"""Signals end a run once, wherever they meet it."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from types import FrameType

import pytest
from prefect import flow

from flows.interrupts import Interrupts
from flows.way_back import WayBack
from tasks.bluegreen.app import parse
from tasks.bluegreen.model import Observed
from tasks.bluegreen.plan import plan_deploy
from tests.lab.interrupting import interrupted

NOTHING = Observed(
    app="shop",
    proxy="proxy",
    releases=(),
    subnet="172.28.0.0/16",
    dynamic="172.28.1.0/24",
)


class Leaving:
    """An object during whose end a signal comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


class Failing:
    """An object whose end fails by itself."""

    def __del__(self) -> None:
        raise KeyboardInterrupt


def leave() -> None:
    """Python drops what the signal's handler raises meanwhile."""
    Leaving()


def test_a_signal_that_comes_while_python_clears_up_is_not_lost() -> None:
    with Interrupts() as interrupts:
        leave()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
        assert interrupts.ignored
        signal.raise_signal(signal.SIGINT)  # the way back has begun


def test_a_signal_that_was_lost_does_not_cut_the_way_back() -> None:
    with Interrupts() as interrupts:
        leave()
        interrupts.ignored = True
        time.sleep(0.5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_else_python_drops_does_not_cut_the_way_back() -> None:
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        Failing()
        time.sleep(0.5)
        assert interrupts.ignored


def test_a_signal_in_the_middle_of_a_context_s_end_comes_after_it() -> None:
    left = []

    class Lock:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            signal.raise_signal(signal.SIGINT)
            left.append(self)

    with Interrupts():
        with Lock():
            pass
        assert left
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)


def test_a_signal_while_a_thread_starts_comes_after_it() -> None:
    def starts(frame: FrameType) -> bool:
        return frame.f_code is threading.Thread.start.__code__

    with Interrupts():
        with interrupted(signal.SIGINT, "start", starts, 5) as it:
            thread = threading.Thread(target=bool)
            thread.start()
        assert it.place
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    thread.join(5)


def test_a_signal_that_somebody_keeps_to_himself_is_obeyed_before_the_end(prefect: None) -> None:
    app = parse({"name": "shop", "image": "shop:1", "port": 80})
    went = []

    class Way(WayBack):
        def _roll_back(self, why: str) -> str:
            went.append(why)
            return "Nobody serves."

    @flow
    def story() -> None:
        plan = plan_deploy(app, NOTHING)
        with (
            Interrupts() as interrupts,
            Way(plan, interrupts),
            suppress(KeyboardInterrupt),
        ):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        story()
    assert went == ["KeyboardInterrupt"]
