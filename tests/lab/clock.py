"""Release windows that are closed now, or open and close soon."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.bluegreen.window import DAYS


def closed() -> dict[str, Any]:
    """A window that opens in two days, for an hour."""
    day = datetime.now(UTC) + timedelta(days=2)
    return {"days": [DAYS[day.weekday()]], "opens": "12:00", "closes": "13:00"}


def minute(ahead: float) -> datetime:
    """A full minute, in UTC, that is to come in that many seconds or up to a minute later."""
    return (datetime.now(UTC) + timedelta(seconds=ahead + 60)).replace(second=0, microsecond=0)
