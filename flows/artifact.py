"""Reports in the Prefect UI: one artifact per app, whose versions are its history."""

from __future__ import annotations

import re

import httpx
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.bluegreen.model import Report
from tasks.bluegreen.site import TEMPLATES

TEMPLATE = "report.md.j2"


def publish(report: Report, outcome: str) -> None:
    """The report is in the UI; a server that is away costs the report, never the deploy."""
    if not report.app:
        return
    try:
        create_markdown_artifact(
            markdown(report, outcome), key=f"report-{report.app}", description=report.message
        )
    except (httpx.HTTPError, RuntimeError) as error:
        get_run_logger().warning("The report could not be kept in Prefect: %s", error)


def markdown(report: Report, outcome: str) -> str:
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
    return template.render(report=report, outcome=outcome, fence="`" * max(3, longest + 1))
