"""What the tests of deaths counted, for the end of a run of pytest, with several workers, too."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

COLUMNS = ("deaths", "requests", "lost", "silent", "median", "worst", "served after")
PROPERTY = "deaths"  # on the reports of tests, which pytest-xdist hands to its controller


class Case(NamedTuple):
    """What became of one death."""

    what: str
    code: int
    seconds: float  # from the death until all is clean
    requests: int
    lost: int
    silence: float  # seconds of the longest time without a right answer
    serves: str  # who serves afterwards: blue, green, the next run's or nobody


def row(cases: Iterable[Any]) -> tuple[str, ...]:
    """The figures of some cases, as in COLUMNS; times are in seconds."""
    found = [Case(*case) for case in cases]
    seconds = [case.seconds for case in found]
    silence = max((case.silence for case in found if case.lost), default=0)
    return (
        f"{len(found)}",
        f"{sum(case.requests for case in found):,}",
        f"{sum(case.lost for case in found):,}",
        f"{silence:.1f}" if silence else "never",
        f"{statistics.median(seconds):.1f}",
        f"{max(seconds):.1f}",
        ", ".join(f"{who} {n}" for who, n in sorted(Counter(c.serves for c in found).items())),
    )


def table(stats: dict[str, list[Any]]) -> Iterator[str]:
    """A line for each test that counted, and one for all.

    Args:
        stats: pytest's reports.
    """
    counted = {
        report.nodeid.partition("::")[2]: value
        for reports in stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
    }
    if counted:
        yield _line(COLUMNS, "seconds: nobody served, clean again after the death")
        for test, cases in sorted(counted.items()):
            yield _line(row(cases), test)
        yield _line(row(case for cases in counted.values() for case in cases), "all")


def _line(columns: tuple[str, ...], test: str) -> str:
    *figures, serves = columns
    return "".join(f"{column:>9}" for column in figures) + f"  {serves:26} {test}"
