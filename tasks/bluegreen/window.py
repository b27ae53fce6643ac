"""Release windows: when an app may be deployed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, field_validator

from tasks.bluegreen.units import Frozen

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
LONGEST = timedelta(days=15)  # a week, and one more where the clock leaps over a window
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def _clock(value: Any) -> Any:
    """YAML reads an unquoted 22:00 as the number 1320."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value // 60:02}:{value % 60:02}"
    return value


TIME = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
MINUTES = Annotated[int, Field(ge=0, lt=24 * 60, title="minutes since midnight")]
Clock = Annotated[TIME, BeforeValidator(_clock, json_schema_input_type=TIME | MINUTES)]


class Window(Frozen):
    """Hours in which an app may be deployed, by the clock on the wall of its time zone."""

    days: tuple[Day, ...] = Field(
        default=DAYS, min_length=1, description="Days of the week on which it opens."
    )
    opens: Clock = Field(
        default="00:00",
        description="Time of day, hours and minutes, like 09:00; a number: minutes since midnight.",
    )
    closes: Clock = Field(
        default="00:00",
        description="Time of day, hours and minutes, like 17:30; a number: minutes since "
        "midnight; not later than `opens`: on the next day.",
    )
    time_zone: str = Field(
        default="UTC",
        description="IANA time zone, like Europe/Berlin.",
        json_schema_extra={"pattern": r"^[A-Za-z]+[A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"},
    )

    @field_validator("time_zone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        try:
            _zone(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{value!r} is not a time zone, like Europe/Berlin or UTC") from error
        return value

    def local(self, at: datetime) -> datetime:
        """The same moment by the clock on its wall."""
        return at.astimezone(_zone(self.time_zone))


def is_open(windows: Sequence[Window], at: datetime) -> bool:
    """Whether one of the windows is open; always, when there is none."""
    return not windows or any(_within(window, at) for window in windows)


def next_opening(windows: Sequence[Window], at: datetime) -> datetime:
    """The first moment, from `at` on, in which one of the windows is open; in UTC.

    Minute by minute, so that every leap of the clocks is taken as it comes.
    """
    at = _utc(at)
    if is_open(windows, at):
        return at
    minute, last = at.replace(second=0, microsecond=0) + MINUTE, at + LONGEST
    while minute < last and not is_open(windows, minute):
        minute += MINUTE
    return minute


def next_closing(windows: Sequence[Window], at: datetime) -> datetime | None:
    """The first full minute after `at` in which no window is open, in UTC; None: not within a day.

    No run is at work for so long.
    """
    if not windows:
        return None
    at = _utc(at)
    minute = at.replace(second=0, microsecond=0) + MINUTE
    while is_open(windows, minute):
        minute += MINUTE
        if minute > at + DAY:
            return None
    return minute


def _within(window: Window, at: datetime) -> bool:
    local = window.local(at)
    clock = f"{local.hour:02}:{local.minute:02}"
    today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
    if window.opens < window.closes:
        return today in window.days and window.opens <= clock < window.closes
    return (today in window.days and clock >= window.opens) or (
        yesterday in window.days and clock < window.closes
    )


def _utc(at: datetime) -> datetime:
    """The same moment, of Python's own type: sums of Prefect's lose the time zone."""
    return datetime.fromtimestamp(at.timestamp(), UTC)


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
