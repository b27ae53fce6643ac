"""Flows deploy and rollback: the story, and the way back."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.interrupts import Interrupts
from flows.recover import recover_afterwards, recovered
from flows.way_back import WayBack, retire
from tasks.bluegreen.app import App, with_image
from tasks.bluegreen.errors import NonstopError
from tasks.bluegreen.model import Observed, Plan, Report
from tasks.bluegreen.plan import plan_deploy, plan_rollback
from tasks.health_check import health_check
from tasks.locked import locked
from tasks.observe import observe
from tasks.preflight import preflight
from tasks.reload_nginx import reload_nginx
from tasks.render_config import render_config
from tasks.start_green import start_green
from tasks.step import STEPS
from tasks.verify_traffic import verify_traffic

HOURS = 3600


@flow(
    name="deploy",
    timeout_seconds=3 * HOURS,
    persist_result=False,
    on_crashed=[recover_afterwards],
    on_cancellation=[recover_afterwards],
)
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
        seen = recovered(observe(app.name, app.proxy), app.proxy, holder)
        return replace(plan_deploy(app, seen, holder, str(flow_run.id or "")))


@flow(
    name="rollback",
    timeout_seconds=3 * HOURS,
    persist_result=False,
    on_crashed=[recover_afterwards],
    on_cancellation=[recover_afterwards],
)
def rollback(app: str, to: int | None = None, wait: float = 0) -> Report:
    """Return to an earlier release: its image, environment and settings, under a new number.

    Args:
        app: Name of the app.
        to: Number of the release to return to; empty: the one before the live one.
        wait: Seconds to wait for another run of this app; 0: give up at once.
    """
    STEPS.set([])
    seen = observe(app)
    kept = plan_rollback(seen, to).app
    preflight(kept, rollback=True)
    with locked(app, kept.proxy, wait) as holder:
        now = recovered(observe(app, kept.proxy), kept.proxy, holder)
        if returned := returned_by_recovery(seen, now, to):
            return returned
        return replace(plan_rollback(now, to, holder, str(flow_run.id or "")))


def replace(plan: Plan) -> Report:
    """Green instead of blue; or, after any failure, blue as before and the failure raised."""
    get_run_logger().info(
        "%s: release %d replaces %s", plan.app.name, plan.green, plan.blue or "nothing"
    )
    with Interrupts() as interrupts:
        with WayBack(plan, interrupts) as way:
            replicas = start_green(plan)
            way.touched = True
            health_check(plan, replicas)
            site = render_config(plan, replicas)
            reload_nginx(plan, site)
            verified = verify_traffic(plan, replicas)
        return retire(plan, verified)


def returned_by_recovery(before: Observed, now: Observed, to: int | None) -> Report | None:
    """A report if recovery went back from a bad release already, as far as was asked for."""
    if before.live is None or now.live is None or now.live.number >= before.live.number:
        return None
    if to not in (None, now.live.number):
        return None
    live = now.release(now.live.number)
    return Report(
        outcome="succeeded",
        app=now.app,
        release=now.live.number,
        image=live.image if live else "",
        blue=before.live.number,
        steps=tuple(STEPS.get() or []),
        message=f"Release {now.live.number} of {now.app} serves: the run that made release "
        f"{before.live.number} live had died, so that was taken back.",
    )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Our own failures tell everything in their sentence; a traceback would only bury it."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, NonstopError):
        record.exc_info = None
    return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_without_traceback)
