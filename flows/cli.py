"""The nonstop command: deploy, rollback, recover, status, plan and doctor; and `up`, which serves.

Without PREFECT_API_URL the runs are kept by Prefect's embedded server, in the database that
`prefect server start` shows later.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

# Before Prefect is imported: its log lines are shown by us, its embedded server may start slowly,
# and a server that goes away must not keep us. What `up` starts has settings of its own.
if sys.argv[1:2] != ["up"]:
    gc.disable()  # what is imported stays: to look through it for garbage is a fifth of the start
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")
    os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # 90 s of silence are a death
if not os.environ.get("PREFECT_API_URL"):  # an empty one would be taken for an address
    os.environ.pop("PREFECT_API_URL", None)

import httpx
import typer
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from flows.account import ended, sentence
from flows.deploy import deploy, rollback
from flows.doctor import examine
from flows.inventory import FILE, deployments, load, load_all, parameters
from flows.parts import Address, Parts, away
from flows.progress import ERR, progress
from flows.recover import recover
from flows.report import (
    Unseen,
    describe,
    print_failure,
    print_findings,
    print_json,
    print_plan,
    print_recovered,
    print_report,
    print_status,
)
from flows.units import DIRECTORY, next_steps, write_units
from flows.windows import schedule
from tasks.bluegreen.app import with_image
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.environment import MASK
from tasks.bluegreen.errors import EXIT_CODES, BadInput, NonstopError, Unavailable
from tasks.bluegreen.model import Observed, Report
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.plan import plan_deploy
from tasks.bluegreen.proxy import to_create
from tasks.observe import observe
from tasks.preflight import ensure_described_well, ensure_site_loads

gc.freeze()
gc.enable()

command = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Name = Annotated[str, typer.Argument(metavar="APP", help="Name of the app.")]
Image = Annotated[str | None, typer.Option(help="Image instead of the app's own.")]
Inventory = Annotated[Path, typer.Option("--file", help="The inventory with the apps.")]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another run of this app.")]
Approve = Annotated[
    bool, typer.Option("--approve", help="Wait for a yes in the Prefect UI before the cutover.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@command.command("deploy")
def deploy_command(
    app: Name,
    image: Image = None,
    wait: Wait = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Deploy also what serves already.")
    ] = False,
    override: Annotated[
        str, typer.Option(metavar="REASON", help="Deploy outside the release windows.")
    ] = "",
    approve: Approve = False,
    at: Annotated[
        str, typer.Option(metavar="TIME", help="Have the server do it later, like 03:00.")
    ] = "",
    file: Inventory = FILE,
    as_json: AsJson = False,
) -> None:
    """Replace the live release of APP by a new one; after any failure go back by itself.

    When image, environment and settings are what serves already, nothing is done.
    """
    options = {
        "image": image or "",
        "force": force,
        "override": override,
        "approve": approve,
        "wait": wait,
    }
    with _outcomes(app, as_json):
        asked = parameters(app, file) | {name: given for name, given in options.items() if given}
        if unknown := ", ".join(sorted(asked.keys() - deploy.parameters.properties.keys())):
            raise BadInput(
                f"{file}: a deploy of {app} takes no {unknown}: take it out, or correct it."
            )
        if at:
            said = schedule(asked.pop("app"), at, **asked)
            print_json({"app": app, "message": said}) if as_json else typer.echo(said)
            return
    _run(app, as_json, lambda: deploy(**asked))


@command.command("rollback")
def rollback_command(
    app: Name,
    to: Annotated[int | None, typer.Option(help="Number of the release to return to.")] = None,
    approve: Approve = False,
    wait: Wait = 0,
    as_json: AsJson = False,
) -> None:
    """Return APP to the release before the live one, or to the one named by --to."""
    _run(app, as_json, lambda: rollback(app, to, approve=approve, wait=wait))


@command.command("recover")
def recover_command(
    app: Annotated[
        str | None, typer.Argument(metavar="[APP]", help="Name of the app; none: all.")
    ] = None,
    wait: Wait = 0,
    as_json: AsJson = False,
) -> None:
    """Finish or undo what a run of APP, or of any app, left when it died."""
    with _outcomes(app or "", as_json), _prefect(), progress(app or "recover"):
        try:
            reports = recover(app, wait)
        except httpx.HTTPError as error:
            reports = [_without_prefect(error)]
    if as_json:
        print_json([report.model_dump(mode="json") for report in reports])
    else:
        print_recovered(reports)


@command.command()
def status(
    app: Annotated[
        str | None, typer.Argument(metavar="[APP]", help="Name of the app; none: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the releases of APP, or of all apps, as Docker and the running nginx tell."""
    with _outcomes(app or "", as_json):
        with Engine() as engine:
            names = (app,) if app else engine.apps()
            looks = (_seen(engine, name, gone=not app) for name in names)
            seen = [look for look in looks if look]
        if as_json:
            print_json([describe(one) for one in seen])
        else:
            print_status(seen)
        for one in seen:
            if isinstance(one, Unseen):
                sys.exit(EXIT_CODES[one.why.outcome])


def _seen(engine: Engine, app: str, *, gone: bool) -> Observed | Unseen | None:
    """An app as far as it can be seen; None if it is gone, where it may be."""
    try:
        return observe.fn(app)
    except NonstopError as error:
        if releases := engine.releases(app):
            return Unseen(app, releases, error)
        if gone:
            return None
        raise


@command.command()
def plan(app: Name, image: Image = None, file: Inventory = FILE, as_json: AsJson = False) -> None:
    """Show what a deploy of APP would do, and do nothing."""
    with _outcomes(app, as_json):
        asked = parameters(app, file)
        wanted = with_image(asked["app"], image or asked.get("image"))
        with Engine() as engine:
            ensure_described_well(engine, wanted, lambda _: MASK)
            proxy = wanted.proxy
            if not to_create(engine, proxy):
                ensure_site_loads(Nginx(engine, proxy), wanted)
        seen = observe.fn(app, proxy)
        planned = plan_deploy(wanted, seen)
        if as_json:
            print_json(planned.model_dump(mode="json"))
        else:
            print_plan(planned, seen)


@command.command()
def doctor(
    app: Annotated[
        str | None, typer.Argument(metavar="[APP]", help="Name of the app; none: all.")
    ] = None,
    file: Inventory = FILE,
    as_json: AsJson = False,
) -> None:
    """Show what would stop a deploy here, each with its remedy; exit code 2 if anything would."""
    with _outcomes(app or "", as_json):
        apps = (load(app, file),) if app else load_all(file)
        findings = list(examine(apps, others=app is None))
        if as_json:
            print_json([finding._asdict() for finding in findings])
        else:
            print_findings(findings)
        if any(finding.level == "problem" for finding in findings):
            sys.exit(EXIT_CODES["refused"])


@command.command("up")
def up_command(
    file: Inventory = FILE,
    server: Annotated[
        str, typer.Option(help="Where the Prefect server listens; not with PREFECT_API_URL.")
    ] = "127.0.0.1:4200",
    webhooks: Annotated[str, typer.Option(help="Where webhooks are received.")] = "127.0.0.1:4280",
    notify: Annotated[
        str | None, typer.Option(help="TYPE/NAME of the Prefect block that tells of failures.")
    ] = None,
    systemd: Annotated[bool, typer.Option(help="Write systemd units instead.")] = False,
    directory: Annotated[Path, typer.Option(help="Where --systemd writes them.")] = DIRECTORY,
) -> None:
    """Run everything for this host: Prefect server, deployments, automations, webhook receiver."""
    with _outcomes("", as_json=False):
        parts = Parts.of(file, Address.parse(server), Address.parse(webhooks), notify)
        if systemd:
            deployments(file)  # or it is refused before anything is written
            print(next_steps(parts, write_units(parts, directory)))
        else:
            from flows.up import up  # a quarter of the start, which no other command needs

            up(parts)


def main() -> None:
    """The console script."""
    # Prefect sends SIGTERM to its own process once more when a run that it interrupted has ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a terminal that is gone
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    command()


def _run(app: str, as_json: bool, start: Callable[[], Report]) -> None:
    with _outcomes(app, as_json), _prefect(), progress(app):
        try:
            report = start()
        except httpx.HTTPError as error:
            report = _without_prefect(error)
        _ensure_succeeded(report)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_report(report)


def _without_prefect(error: httpx.HTTPError) -> Report:
    """The report of a run that Prefect's server did not live to see.

    Raises:
        Unavailable: the run did not begin, as far as is known here.
    """
    report = ended()
    if report is None:
        raise Unavailable(
            f"The Prefect server does not answer ({error}): look at it, and at `nonstop status`, "
            "then try again."
        ) from error
    ERR.print(
        f"The Prefect server went away, so its history lacks the end: {error}", style="yellow"
    )
    return report


def _ensure_succeeded(report: Report) -> None:
    """What was asked for was done.

    Raises:
        NonstopError: it was not, and waits for the app's release window; or it failed, and
            Prefect's history lacks its end.
    """
    if report.outcome != "succeeded":
        failure = NonstopError(report.message, report.evidence)
        failure.outcome = report.outcome
        raise failure


@contextmanager
def _outcomes(app: str, as_json: bool) -> Iterator[None]:
    """A failure within is told in a sentence, and ends the command with its exit code."""
    try:
        yield
    except (NonstopError, KeyboardInterrupt, TerminationSignal, CancelledRun) as failure:
        known = ended() or Report(outcome="failed", app=app, message=sentence(failure))
        outcome, message, evidence = known.outcome, known.message, ""
        if isinstance(failure, NonstopError):
            outcome, message, evidence = failure.outcome, sentence(failure), failure.evidence
        if as_json:
            told = {"outcome": outcome, "message": message, "evidence": evidence}
            print_json(known.model_copy(update=told).model_dump(mode="json"))
        else:
            print_failure(outcome, message, evidence)
        sys.exit(EXIT_CODES[outcome])


@contextmanager
def _prefect() -> Iterator[None]:
    """Runs within are kept by the Prefect server that the settings name, or the embedded one.

    Raises:
        Unavailable: the server that is named does not answer.
    """
    url = PREFECT_API_URL.value()
    if url:
        if error := away(url):
            raise Unavailable(
                f"No Prefect server answers at PREFECT_API_URL={url} ({error}): start it, or "
                "unset PREFECT_API_URL to run without one. Nothing was touched."
            ) from error
        yield
        return
    from flows.embedded import Embedded  # it brings the server's own modules along

    Embedded()
    ERR.print("starting Prefect's embedded server", style="dim")
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield  # nobody watches for heartbeats here, and their thread takes 1 s to end
