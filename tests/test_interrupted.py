"""A signal at any line of a run leads back at once; no visitor notices."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from types import FrameType

import pytest

from flows.interrupts import half_done
from tasks.bluegreen.scripts import TAKE, WRITE
from tests.lab.interrupting import Terminated, interrupted, where
from tests.lab.shop import Shop
from tests.lab.tally import Case

Count = Callable[[list[Case]], None]
LINES = 100_000  # of a deploy that is watched for a second, from start-green on


def interrupt(
    shop: Shop, number: signal.Signals, begin: str, here: Callable[[FrameType], bool], line: int
) -> Case | None:
    """A deploy that a signal meets at a line; None: it met none, and the deploy ended well."""
    visitors = shop.visitors(kinds=["get", "post"])
    with visitors as heard, interrupted(number, begin, here, line) as it:
        try:
            shop.deploy("another", verify={"bake_time": 1})
        except (KeyboardInterrupt, Terminated):
            seconds = time.monotonic() - it.came
        else:
            assert not it.place, f"{number.name} was lost at {it.place}"
            return None
    assert seconds < 15, it.place
    assert heard.lost == 0, (it.place, heard.losses)
    return Case(it.place, 1, seconds, heard.requests, heard.lost, heard.silence, "blue")


@pytest.mark.parametrize(
    ("place", "script", "line"),
    [
        ("bluegreen/shell.py run", TAKE, 9),  # the turn is asked for
        ("bluegreen/shell.py run", WRITE, 9),  # the site is being written
        ("bluegreen/turn.py turn", None, 9),  # it is loaded, and the turn is given up
        # Where asyncio keeps what a callback raises to itself: none of ours may be there.
        ("asyncio/events.py _run", None, 2),
    ],
    ids=["take", "write", "leave", "asyncio"],
)
def test_a_signal_at_this_line_of_a_reload_leads_back_at_once(
    serving: Shop, count: Count, place: str, script: str | None, line: int
) -> None:
    def here(frame: FrameType) -> bool:
        return where(frame) == place and frame.f_locals.get("script") == script

    case = interrupt(serving, signal.SIGTERM, "reload_nginx", here, line)
    assert case or "asyncio" in place
    assert serving.live() == (1 if case else 2)
    count([case] if case else [])


@pytest.mark.long
def test_a_signal_at_any_line_leads_back_at_once(shop: Shop, count: Count) -> None:
    shop.deploy("one")
    before, cases = (shop.live(), shop.containers()), list[Case]()
    for line in random.sample(range(LINES), 60):
        number = random.choice((signal.SIGINT, signal.SIGTERM))
        # There a signal waits, which it cannot when the tracer's own frame is the one it meets.
        if case := interrupt(shop, number, "start_green", lambda frame: not half_done(frame), line):
            cases.append(case)
            assert (shop.live(), shop.containers()) == before, case.what
        before = shop.live(), shop.containers()
    count(cases)
    assert len(cases) > 30
