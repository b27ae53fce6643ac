"""Reports, plans and the status of apps, as people and programs read them on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from flows.doctor import Finding
from flows.progress import ERR
from flows.windows import told
from tasks.bluegreen.errors import NonstopError, Outcome
from tasks.bluegreen.model import Live, Observed, Plan, Release, Report
from tasks.bluegreen.plan import plan_retirement, role
from tasks.bluegreen.recovery import plan_recovery, recovery_lines
from tasks.bluegreen.window import is_open, next_opening

OUT = Console(highlight=False)


class Unseen(NamedTuple):
    """An app whose releases Docker shows, and of which nobody says what visitors are served."""

    app: str
    releases: tuple[Release, ...]
    why: NonstopError


def print_json(value: Any) -> None:
    """A value for programs."""
    print(json.dumps(value, indent=2))


def print_report(report: Report) -> None:
    """Steps and seconds, what was watched, and the outcome."""
    table = Table("step", "seconds", box=None, header_style="dim")
    for step in report.steps:
        table.add_row(step.name, f"{step.seconds:.1f}")
    OUT.print(table)
    if report.verified:
        OUT.print(
            f"watched: {report.verified.requests} requests of ours, {report.verified.failed} "
            f"failed; {report.verified.visitors} of visitors, {report.verified.visitors_failed} "
            "failed",
            highlight=False,
        )
        if report.verified.deaf:
            said = f"visitors were not watched to the end: {report.verified.deaf}"
            OUT.print(said, markup=False, soft_wrap=True)
    if report.drained:
        cut = f"; the limit cut {report.drained.left} connections" if report.drained.left else ""
        OUT.print(f"drained in {report.drained.seconds:.1f} s{cut}")
    OUT.print(f"[bold green]{report.outcome}[/]", end=" ")
    OUT.print(report.message, markup=False, soft_wrap=True)


def print_recovered(reports: Sequence[Report]) -> None:
    """A sentence for each app."""
    for report in reports:
        OUT.print(" ".join((report.message, *report.notes)), markup=False, soft_wrap=True)
    if not reports:
        OUT.print("No app is deployed on this engine.")


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each, what is wrong with its remedy."""
    colours = {"fine": "green", "warning": "yellow", "problem": "red"}
    for finding in findings:
        OUT.print(f"[{colours[finding.level]}]{finding.level:8}[/]", end=" ")
        remedy = f": {finding.remedy}" if finding.remedy else ""
        OUT.print(f"{finding.where}: {finding.what}{remedy}", markup=False, soft_wrap=True)


def print_failure(outcome: Outcome, message: str, evidence: str) -> None:
    """Outcome and sentence, and below it what shows why."""
    ERR.print(f"[bold red]{outcome}[/]", end=" ")
    ERR.print(message, markup=False, soft_wrap=True)
    if evidence:
        ERR.print(evidence, markup=False, soft_wrap=True, style="dim")


def print_plan(planned: Plan, seen: Observed) -> None:
    """What a deploy would do, line by line."""
    for line in _plan_lines(planned, seen):
        OUT.print(line, markup=False, soft_wrap=True)


def describe(seen: Observed | Unseen) -> dict[str, Any]:
    """An app's releases and their roles, for programs."""
    if isinstance(seen, Unseen):
        told: dict[str, Any] = {"live": None, "loaded": None, "error": str(seen.why)}
    else:
        told = {"live": seen.live.number if seen.live else None, "loaded": seen.loaded}
    return {
        "app": seen.app,
        **told,
        "releases": [
            {
                "number": release.number,
                "role": _role(seen, release),
                "image": release.image,
                "pinned": release.pinned,
                "running": release.running,
                "replicas": [
                    replica.model_dump(include={"name", "address", "status", "health", "started"})
                    for replica in release.replicas
                ],
            }
            for release in seen.releases
        ],
    }


def _role(seen: Observed | Unseen, release: Release) -> str:
    return "unknown" if isinstance(seen, Unseen) else role(seen, release)


def print_status(seen: Sequence[Observed | Unseen]) -> None:
    """A table of releases for each app, newest first."""
    for one in seen:
        _print_one(one)
    if not seen:
        OUT.print("No app is deployed on this engine.")


def _print_one(seen: Observed | Unseen) -> None:
    table = Table("release", "role", "image", "running", "started", title=seen.app)
    table.title_justify = "left"
    for release in reversed(seen.releases):
        table.add_row(
            str(release.number),
            _role(seen, release),
            release.image,
            f"{release.running} of {len(release.replicas)}",
            max(replica.started for replica in release.replicas)[:19].replace("T", " "),
        )
    OUT.print(table)
    if isinstance(seen, Unseen):
        OUT.print(str(seen.why), markup=False, soft_wrap=True, style="red")
        return
    if not seen.live:
        OUT.print(f"nginx serves no release of {seen.app}.", style="yellow")
    if seen.holder:
        OUT.print(f"It is being changed by {seen.holder}.", markup=False, soft_wrap=True)
    elif not seen.loaded:
        OUT.print(
            "The site's file is not what the running nginx has loaded: a run died between the two. "
            f"`nonstop recover {seen.app}` puts it right.",
            style="yellow",
        )
    elif lines := list(recovery_lines(plan_recovery(seen))):
        said = f"`nonstop recover {seen.app}` would {'; '.join(lines)}."
        OUT.print(said, markup=False, soft_wrap=True, style="yellow")


def _plan_lines(planned: Plan, seen: Observed) -> Iterator[str]:
    app, now = planned.app, datetime.now(UTC)
    if not is_open(app.window, now):
        opening = told(next_opening(app.window, now), app.window)
        yield f"not before {opening}, outside its release windows; or with --override REASON:"
    if planned.blue is not None:
        yield f"nothing, if release {planned.blue} is what is wanted already; or with --force:"
    if seen.holder:
        yield f"nothing, while it is being changed by {seen.holder}; or with --wait, and after it:"
    recovery = plan_recovery(seen)
    if not seen.holder:
        yield from recovery_lines(recovery)
    yield f"start release {planned.green} from {app.image} (pull_policy: {app.pull_policy}):"
    for index, address in enumerate(planned.addresses, start=1):
        yield f"  {app.name}-{planned.green}-{index} at {address}:{app.port}"
    yield (
        f"wait until all are healthy: {app.health.checks} rounds of {app.health.path}, "
        f"at most {app.health.deadline:g} s"
    )
    yield (
        f"cut over in {app.proxy.container}: "
        f"{' '.join(app.hosts) or 'every host name'} from release {planned.blue or 'nothing'} "
        f"to {planned.green}"
    )
    yield f"watch it for {app.verify.bake_time:g} s, and go back if it fails"
    after = seen.model_copy(
        update={
            "live": Live(number=planned.green, generation=""),
            "releases": tuple(r for r in seen.releases if r.number not in recovery.remove),
        }
    )
    retirement = plan_retirement(after, app.keep)
    for number in retirement.stop:
        yield f"drain release {number} (at most {app.drain.limit:g} s) and stop it"
    for number in retirement.keep:
        yield f"keep release {number} for a rollback"
    for number in retirement.remove:
        yield f"remove release {number}"
