"""Release windows: when an app may be deployed, also where the clocks leap. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.types import DateTime
from pydantic import TypeAdapter

from flows.windows import moment
from tasks.bluegreen.app import parse
from tasks.bluegreen.errors import BadInput
from tasks.bluegreen.window import DAY, DAYS, Window, is_open, next_closing, next_opening

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
CLOCKS = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
WINDOWS = st.lists(
    st.builds(
        Window,
        days=st.sets(st.sampled_from(DAYS), min_size=1).map(tuple),
        opens=CLOCKS,
        closes=CLOCKS,
        time_zone=st.sampled_from(ZONES),
    ),
    min_size=1,
    max_size=3,
)
LEAPS = [  # when clocks leap, in UTC
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
    datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
]
MOMENTS = st.one_of(
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)).map(lambda t: t.replace(tzinfo=UTC)),
    st.builds(
        lambda leap, minutes: leap + timedelta(minutes=minutes),
        st.sampled_from(LEAPS),
        st.integers(-3000, 3000),
    ),
)


def window(**fields: object) -> list[Window]:
    """As in prefect.yaml, for an app of its own."""
    app = {"name": "shop", "image": "shop:1", "port": 80, "window": [fields]}
    return list(parse(app).window)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@settings(max_examples=60, deadline=None)
@given(WINDOWS, MOMENTS)
def test_the_next_opening_is_the_first_open_moment(windows: list[Window], at: datetime) -> None:
    opening = next_opening(windows, at)
    assert opening >= at
    assert is_open(windows, opening)
    if opening > at:
        assert not is_open(windows, at)
        assert not is_open(windows, opening - timedelta(microseconds=1))
        assert opening.second == opening.microsecond == 0
    waiting = (opening - at) / 97
    assert not any(is_open(windows, at + waiting * part) for part in range(97) if waiting)


@settings(max_examples=60, deadline=None)
@given(WINDOWS, MOMENTS)
def test_the_next_closing_is_where_the_last_open_minute_ends(
    windows: list[Window], at: datetime
) -> None:
    at = next_opening(windows, at)
    closing = next_closing(windows, at)
    until = closing or at + DAY
    assert at < until <= at + DAY
    assert closing is None or not is_open(windows, closing)
    minutes = -(-(until - at) // timedelta(minutes=1))
    assert all(
        is_open(windows, until - timedelta(minutes=n, microseconds=1)) for n in range(minutes)
    )


def test_what_is_always_open_never_closes() -> None:
    assert next_closing((), utc("2026-06-01T12:00")) is None
    assert next_closing(window(), utc("2026-06-01T12:00")) is None


@given(WINDOWS, MOMENTS)
def test_a_moment_may_be_of_prefect_s_own_type(windows: list[Window], at: datetime) -> None:
    prefect_s = TypeAdapter(DateTime).validate_python(at.isoformat())
    assert next_opening(windows, prefect_s) == next_opening(windows, at)
    assert next_closing(windows, prefect_s) == next_closing(windows, at)


@settings(max_examples=200, deadline=None)
@given(WINDOWS, MOMENTS)
def test_a_window_is_open_by_the_clock_on_its_wall(windows: list[Window], at: datetime) -> None:
    def by_the_wall(one: Window) -> bool:
        local = one.local(at)
        clock, today = local.strftime("%H:%M"), DAYS[local.weekday()]
        yesterday = DAYS[(local.date() - timedelta(days=1)).weekday()]
        hours = (one.opens, one.closes)
        if hours[0] < hours[1]:
            return today in one.days and hours[0] <= clock < hours[1]
        return (today in one.days and hours[0] <= clock) or (
            yesterday in one.days and clock < hours[1]
        )

    assert is_open(windows, at) == any(map(by_the_wall, windows))


def test_without_windows_an_app_may_always_be_deployed() -> None:
    assert is_open((), utc("2026-06-01T12:00"))


OFFICE = {"days": DAYS[:5], "opens": "09:00", "closes": "17:00"}


@pytest.mark.parametrize(
    ("fields", "at", "opening"),
    [
        # Monday to Friday, nine to five, in Berlin's summer and winter
        (
            {"days": DAYS[:5], "opens": "09:00", "closes": "17:00"},
            "2026-07-03T15:00",
            "07-06T07:00",
        ),
        (
            {"days": DAYS[:5], "opens": "09:00", "closes": "17:00"},
            "2026-01-02T16:00",
            "01-05T08:00",
        ),
        # over midnight: Friday's window is still open on Saturday morning
        ({"days": ["fri"], "opens": "22:00", "closes": "04:00"}, "2026-07-04T01:59", "07-04T01:59"),
        ({"days": ["fri"], "opens": "22:00", "closes": "04:00"}, "2026-07-04T02:00", "07-10T20:00"),
        # the hour from two to three is leapt over on 29 March: what opens within opens at three
        ({"opens": "02:30", "closes": "03:30"}, "2026-03-29T00:00", "03-29T01:00"),
        ({"days": ["sun"], "opens": "02:15", "closes": "02:45"}, "2026-03-29T00:00", "04-05T00:15"),
        # and comes twice on 25 October
        ({"opens": "02:30", "closes": "02:45"}, "2026-10-25T00:20", "10-25T00:30"),
        ({"opens": "02:30", "closes": "02:45"}, "2026-10-25T00:50", "10-25T01:30"),
        # the whole day
        ({"days": ["sun"]}, "2026-07-04T12:00", "07-04T22:00"),
    ],
)
def test_an_opening_is_right_over_midnight_and_where_clocks_leap(
    fields: dict[str, object], at: str, opening: str
) -> None:
    windows = window(time_zone="Europe/Berlin", **fields)
    assert next_opening(windows, utc(at)) == utc(f"2026-{opening}")


def test_hours_may_be_written_as_yaml_likes_them() -> None:
    text = "days: [sat, sun]\nopens: 22:00\ncloses: 06:30"
    (one,) = window(**yaml.safe_load(text))
    assert (one.opens, one.closes) == ("22:00", "06:30")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"days": ["monday"]}, "window.0.days.0: input should be 'mon', 'tue'"),
        ({"days": []}, "window.0.days: "),
        ({"opens": "9:00"}, r"window.0.opens: string should match .*given: '9:00'"),
        ({"closes": "24:00"}, r"window.0.closes: string should match .*given: '24:00'"),
        ({"time_zone": "Berlin"}, "window.0.time_zone: 'Berlin' is not a time zone"),
        ({"time_zone": "../etc/passwd"}, "is not a time zone, like Europe/Berlin"),
        ({"from": "09:00"}, "window.0.from: there is no such field"),
    ],
)
def test_a_window_that_is_wrong_is_refused_in_words(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        window(**fields)


def test_a_time_of_day_is_the_next_one_to_come() -> None:
    now = datetime.now().astimezone().replace(hour=12, minute=0)
    assert moment("12:01", now).date() == now.date()
    assert moment("03:00", now).date() == now.date() + timedelta(days=1)
    assert moment("2999-01-31T03:00", now).year == 2999
    for text in ("25:00", "soon", "3", ""):
        with pytest.raises(BadInput, match="is not a time: write it like 03:00"):
            moment(text, now)
    with pytest.raises(BadInput, match="is over: name a time to come"):
        moment("2020-01-31T03:00", now)
