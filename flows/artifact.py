"""Reports in the Prefect UI: one artifact per app, whose versions are its history."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from tasks.bluegreen.model import Report
from tasks.bluegreen.site import TEMPLATES

TEMPLATE = "report.md.j2"
BRIEF = 10.0  # seconds


def publish(report: Report, outcome: str, again: str) -> None:
    """The report is in the UI; a server that is away costs the report, never the deploy.

    Args:
        report: of the run.
        outcome: name of the state in which it ended, in small letters.
        again: the command that asks for the same once more.
    """
    if not report.app:
        return
    try:
        with briefly():
            create_markdown_artifact(
                markdown(report, outcome, again),
                key=f"report-{report.app}",
                description=report.message,
            )
    except (httpx.HTTPError, RuntimeError) as error:
        get_run_logger().warning("The report could not be kept in Prefect: %s", error)


@contextmanager
def briefly() -> Iterator[None]:
    """Within, a server that is away is not waited for: no deploy depends on what is asked."""
    settings = {PREFECT_API_REQUEST_TIMEOUT: BRIEF, PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(settings):
        yield


def markdown(report: Report, outcome: str, again: str) -> str:
    """A report as people read it: outcome first, the next command last."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown; what could be HTML is escaped by `plain`
    )
    environment.filters["plain"] = lambda text: text.replace("&", "&amp;").replace("<", "&lt;")
    longest = max(map(len, re.findall("`+", report.evidence)), default=0)
    template = environment.get_template(TEMPLATE)
    return template.render(
        report=report, outcome=outcome, again=again, fence="`" * max(3, longest + 1)
    )
