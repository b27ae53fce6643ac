"""Flows deploy and rollback: the story, and the way back."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.exceptions import Abort, Pause
from prefect.logging import get_run_logger
from prefect.states import Cancelled

from flows.interrupts import Interrupts
from tasks.bluegreen.app import App, with_image
from tasks.bluegreen.errors import Failed, NonstopError, Refused, StateUnknown
from tasks.bluegreen.model import Drained, Plan, Replica, Report, Step, Verified
from tasks.bluegreen.plan import plan_deploy, plan_rollback
from tasks.health_check import health_check
from tasks.locked import locked
from tasks.observe import observe
from tasks.overtaken import SUPERSEDED, overtaken
from tasks.preflight import preflight
from tasks.reload_nginx import reload_nginx
from tasks.render_config import render_config
from tasks.roll_back import roll_back
from tasks.start_green import start_green
from tasks.step import STEPS
from tasks.teardown_blue import teardown_blue
from tasks.verify_traffic import verify_traffic

HOURS = 3600


@flow(name="deploy", timeout_seconds=3 * HOURS, persist_result=False)
def deploy(app: App, image: str | None = None, wait: float = 0) -> Report:
    """Replace an app's live release by a new one; visitors notice nothing.

    Args:
        app: What runs, how it is reached, and when it is good.
        image: Image to deploy instead of the app's own; empty: the app's own.
        wait: Seconds to wait for another run of this app; 0: give up at once.
    """
    STEPS.set([])
    app = with_image(app, image)
    preflight(app)
    with locked(app.name, app.proxy, wait) as holder:
        if newer := overtaken():  # a state that is returned is the one that the run ends in
            return Cancelled(name=SUPERSEDED, message=newer)  # type: ignore[return-value]
        return replace(plan_deploy(app, observe(app.name, app.proxy), holder))


@flow(name="rollback", timeout_seconds=3 * HOURS, persist_result=False)
def rollback(app: str, to: int | None = None, wait: float = 0) -> Report:
    """Return to an earlier release: its image, environment and settings, under a new number.

    Args:
        app: Name of the app.
        to: Number of the release to return to; empty: the one before the live one.
        wait: Seconds to wait for another run of this app; 0: give up at once.
    """
    STEPS.set([])
    kept = plan_rollback(observe(app), to).app
    preflight(kept, rollback=True)
    with locked(app, kept.proxy, wait) as holder:
        return replace(plan_rollback(observe(app), to, holder))


def replace(plan: Plan) -> Report:
    """Green instead of blue; or, after any failure, blue as before and the failure raised."""
    log = get_run_logger()
    log.info("%s: release %d replaces %s", plan.app.name, plan.green, plan.blue or "nothing")
    replicas: tuple[Replica, ...] = ()
    with Interrupts() as interrupts:
        try:
            replicas = start_green(plan)
            health_check(plan, replicas)
            site = render_config(plan, replicas)
            reload_nginx(plan, site)
            verified = verify_traffic(plan, replicas)
        except (Abort, Pause):
            raise
        except BaseException as failure:  # a cancelled run raises no Exception
            interrupts.ignored = True
            serves = roll_back(plan, str(failure) or type(failure).__name__)
            log.warning(serves)
            if not isinstance(failure, Exception):
                failure.add_note(serves)
                raise
            raise told(plan, failure, serves, touched=bool(replicas)) from failure
        drained, pending = None, ""
        try:
            drained = teardown_blue(plan)
        except (Abort, Pause, StateUnknown):
            raise
        except BaseException as failure:
            # Green serves and is good: a failed cleanup undoes nothing.
            pending = "Cleanup is pending, the next deploy finishes it"
            if not isinstance(failure, Exception):
                failure.add_note(f"Release {plan.green} serves. {pending}.")
                raise
            pending += f" ({failure})."
            log.warning(pending)
    return _report(plan, verified, drained, pending)


def told(plan: Plan, failure: Exception, serves: str, *, touched: bool) -> NonstopError:
    """The failure as one of ours, with who serves; `Refused` only if nothing was touched."""
    if isinstance(failure, NonstopError) and not (touched and isinstance(failure, Refused)):
        error = failure
    elif isinstance(failure, NonstopError):
        error = Failed(failure.what, failure.evidence)
    else:
        error = Failed(f"{plan.app.name}: {type(failure).__name__}: {failure}.")
    error.serves = serves
    return error


def _report(plan: Plan, verified: Verified, drained: Drained | None, pending: str) -> Report:
    steps: list[Step] = STEPS.get() or []
    return Report(
        outcome="succeeded",
        app=plan.app.name,
        release=plan.green,
        image=plan.app.image,
        blue=plan.blue,
        steps=tuple(steps),
        verified=verified,
        drained=drained,
        cleanup="pending" if pending else "done",
        message=f"Release {plan.green} of {plan.app.name} serves. {pending}".strip(),
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Our own failures tell everything in their sentence; a traceback would only bury it."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, NonstopError):
        record.exc_info = None
    return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_without_traceback)
