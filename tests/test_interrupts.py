"""Signals end a run once, wherever they meet it."""

from __future__ import annotations

import signal
import time

import pytest

from flows.interrupts import Interrupts


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
