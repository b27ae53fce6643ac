"""Reports in the Prefect UI: one artifact per app, whose versions are its history."""

from __future__ import annotations

import re
from functools import partial

import httpx
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.server import briefly, once_free
from tasks.bluegreen.model import Report
from tasks.bluegreen.site import TEMPLATES

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,  # Markdown; what could be HTML is escaped by `plain`
)
_ENVIRONMENT.filters["plain"] = lambda text: text.replace("&", "&amp;").replace("<", "&lt;")
_TEMPLATE = _ENVIRONMENT.get_template("report.md.j2")  # before a run's time counts: 30 ms


def publish(report: Report, outcome: str, again: str) -> None:
    """The report is in the UI; a server that is away costs the report, never the deploy.

    Args:
        report: of the run.
        outcome: name of the state in which it ended, in small letters.
        again: the command that asks for the same once more.
    """
    if not report.app:
        return
    keep = partial(
        create_markdown_artifact,
        markdown(report, outcome, again),
        key=f"report-{report.app}",
        description=report.message,
    )
    try:
        with briefly():
            once_free(keep)
    except (httpx.HTTPError, RuntimeError) as error:
        get_run_logger().warning("The report could not be kept in Prefect: %s", error)


def markdown(report: Report, outcome: str, again: str) -> str:
    """A report as people read it: outcome first, the next command last."""
    longest = max(map(len, re.findall("`+", report.evidence)), default=0)
    return _TEMPLATE.render(
        report=report, outcome=outcome, again=again, fence="`" * max(3, longest + 1)
    )
