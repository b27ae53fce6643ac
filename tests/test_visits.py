"""What the access log says of green, and when that is a reason to go back. Pure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bluegreen.app import parse
from tasks.bluegreen.errors import BadTraffic
from tasks.bluegreen.model import Plan
from tasks.bluegreen.visits import Attempts, request_of, visitors_attempts
from tasks.verify_traffic import judge

GREEN = frozenset({"10.0.0.1:80", "10.0.0.2:80"})
PLAN = Plan(
    app=parse({"name": "shop", "image": "shop:2", "port": 80}),
    green=2,
    blue=1,
    origin=2,
    addresses=("10.0.0.1", "10.0.0.2"),
    previous_site=None,
)


def line(**fields: Any) -> str:
    entry = {"app": "shop", "at": 100.0, "status": 200, "agent": "browser"}
    entry |= {"upstream": "10.0.0.1:80", "upstream_status": "200"} | fields
    return json.dumps(entry, separators=(",", ":"))


@pytest.mark.parametrize(
    ("fields", "attempts"),
    [
        ({}, (1, 0)),
        ({"upstream_status": "404"}, (1, 0)),
        ({"upstream_status": "500"}, (1, 1)),
        ({"upstream": "10.0.0.9:80"}, (0, 0)),  # blue's
        ({"app": "other"}, (0, 0)),
        ({"agent": "nonstop"}, (0, 0)),  # ours
        ({"status": 499}, (0, 0)),  # given up by the visitor
        ({"at": 49.0}, (0, 0)),  # before green had this address
        # the visitor did not see the first attempt fail, and yet it was a failure of green
        ({"upstream": "10.0.0.1:80, 10.0.0.2:80", "upstream_status": "502, 200"}, (2, 1)),
        ({"upstream": "10.0.0.9:80, 10.0.0.2:80", "upstream_status": "502, 200"}, (1, 0)),
        ({"upstream": "10.0.0.1:80 : 10.0.0.2:80", "upstream_status": "504 : 200"}, (2, 1)),
        ({"upstream": "10.0.0.1:80", "upstream_status": "-"}, (1, 1)),
        ({"upstream": "", "upstream_status": ""}, (0, 0)),
    ],
)
def test_every_upstream_attempt_of_a_visitor_counts(
    fields: dict[str, Any], attempts: tuple[int, int]
) -> None:
    assert visitors_attempts(line(**fields), "shop", GREEN, since=50.0) == Attempts(*attempts)


def test_a_failing_request_is_shown_without_what_may_be_a_token() -> None:
    told = request_of(line(method="POST", path="/bot1:AAF-abcdefghijklmnopq/send\n"))
    assert told == "POST '/.../send\\n': 200 from 10.0.0.1:80"


@given(st.integers(0, len(line())), st.text(max_size=20))
def test_a_line_that_is_cut_or_not_ours_counts_at_most_once(length: int, rest: str) -> None:
    assert visitors_attempts(line()[:length] + rest, "shop", GREEN).total <= 1
    assert visitors_attempts('{"app":"shop",' + rest, "shop", GREEN) == Attempts(0, 0)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 2))
def test_green_is_bad_only_when_it_is_worse_than_blue(
    total: int, blue_total: int, blue_failed: int, green_failed: int
) -> None:
    blue = Attempts(blue_total + blue_failed, blue_failed)
    as_good = Attempts(total, int(total * blue.share))
    judge(PLAN, as_good, blue, str)
    judge(PLAN, Attempts(total + green_failed, green_failed), blue, str)  # blips


def test_green_that_fails_beyond_blue_and_tolerance_is_bad() -> None:
    with pytest.raises(BadTraffic, match=r"10 of 100 requests \(10.0%; blue 1.0%"):
        judge(PLAN, Attempts(100, 10), Attempts(1000, 10), str)


def test_a_first_deploy_is_judged_without_a_blue() -> None:
    judge(PLAN, Attempts(1000, 10), Attempts(0, 0), str)
    with pytest.raises(BadTraffic):
        judge(PLAN, Attempts(1000, 30), Attempts(0, 0), str)
