"""Flows deploy and rollback: the story, and the way back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

from prefect import flow
from prefect.exceptions import CancelledRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from pydantic import Field

from flows.account import note
from flows.interrupts import Interrupts
from flows.names import deploy_name, rename, rollback_name
from flows.recover import recover_afterwards, recovered
from flows.reported import ensure_not_cancelled, reported
from flows.way_back import PENDING, WayBack, retire, succeeded
from flows.windows import ensure_in_window
from tasks.ask_approval import LONGEST, ask_approval, ensure_answerable
from tasks.bluegreen.app import IMAGE_IN_FORMS, NAME, App, with_image
from tasks.bluegreen.errors import Failed, NonstopError, Refused
from tasks.bluegreen.model import Observed, Plan, Report
from tasks.bluegreen.plan import plan_deploy, plan_rollback
from tasks.bluegreen.recovery import plan_recovery
from tasks.bluegreen.unchanged import changes
from tasks.compare import compare
from tasks.health_check import health_check
from tasks.locked import LONGEST_WAIT, locked
from tasks.observe import observe
from tasks.overtaken import ensure_newest
from tasks.preflight import preflight
from tasks.reload_nginx import reload_nginx
from tasks.render_config import render_config
from tasks.start_green import start_green
from tasks.step import STEPS
from tasks.verify_traffic import verify_traffic

HOURS = 3600
SETTINGS: Any = {  # of both flows
    "timeout_seconds": 4 * HOURS,
    "persist_result": False,
    "result_storage": PREFECT_LOCAL_STORAGE_PATH.value(),  # unused, but not asked of the server
    "validate_parameters": False,  # `reported` does, and says in words what is wrong
    "on_crashed": [recover_afterwards],
    "on_cancellation": [recover_afterwards],
}
Within = Annotated[float, Field(gt=0, le=LONGEST)]
Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT)]


@flow(name="deploy", flow_run_name=deploy_name, **SETTINGS)
@reported
def deploy(
    image: Annotated[str, Field(json_schema_extra=IMAGE_IN_FORMS)] = "",
    *,
    approve: bool = False,
    approve_within: Within = 1.0 * HOURS,
    force: bool = False,
    override: str = "",
    wait: Wait = 0.0,
    app: App,
) -> Report:
    """Replace an app's live release by a new one; visitors notice nothing.

    Args:
        image: Image to deploy, in small letters, like registry.example.com/shop:1.5; empty: the
            app's own.
        approve: Pause before the cutover until somebody says yes in the Prefect UI.
        approve_within: Seconds to wait for that yes, at most until the release window closes; then
            the answer is no.
        force: Deploy also when image, environment and settings are what serves already.
        override: Reason to deploy outside the app's release windows, kept in the report; empty: a
            request outside waits for the next opening.
        wait: Seconds to wait for another run of this app; 0: give up at once.
        app: What runs, how it is reached, and when it is good; changes here are for this run alone.
    """
    app = with_image(app, image)
    ensure_answerable(approve)
    ensure_in_window(app, override)
    preflight(app)
    with locked(app.name, app.proxy, wait, ensure_newest) as holder:
        ensure_newest()
        # asked again, as it may have waited long
        closes = None if override.strip() else ensure_in_window(app, override)
        before = observe(app.name, app.proxy)
        seen = recovered(before, app.proxy, holder)
        with refused_after(before):
            if not force and not compare(app, seen):
                return unchanged(seen)
            plan = plan_deploy(app, seen, holder, str(flow_run.id or ""))
            return replace(plan, seen, approve_within if approve else 0, closes)


@flow(name="rollback", flow_run_name=rollback_name, **SETTINGS)
@reported
def rollback(
    app: Annotated[str, Field(pattern=NAME)],
    to: int | None = None,
    approve: bool = False,
    approve_within: Within = 1.0 * HOURS,
    wait: Wait = 0.0,
) -> Report:
    """Return to an earlier release: its image, environment and settings, under a new number.

    Args:
        app: Name of the app.
        to: Number of the release to return to; empty: the one before the live one.
        approve: Pause before the cutover until somebody says yes in the Prefect UI.
        approve_within: Seconds to wait for that yes; then the answer is no.
        wait: Seconds to wait for another run of this app; 0: give up at once.
    """
    ensure_answerable(approve)
    seen = observe(app)
    kept = plan_rollback(seen, to).app
    preflight(kept, rollback=True)
    with locked(app, kept.proxy, wait) as holder:
        before = observe(app, kept.proxy)
        now = recovered(before, kept.proxy, holder)
        if returned := returned_by_recovery(seen, now, to) or returned_by_an_earlier_try(now):
            return returned
        with refused_after(before):
            ensure_the_same_serves(seen, now, to)
            plan = plan_rollback(now, to, holder, str(flow_run.id or ""))
            rename(f"rollback {app} to {plan.source} {plan.app.image}")
            return replace(plan, now, approve_within if approve else 0)


def replace(
    plan: Plan, seen: Observed, approve_within: float, closes: datetime | None = None
) -> Report:
    """Green instead of blue; or, after any failure, blue as before and the failure raised.

    With `approve_within` only after somebody said yes, within so many seconds, and before `closes`.
    """
    note(plan=plan)
    log = get_run_logger()
    log.info("%s: release %d replaces %s", plan.app.name, plan.green, plan.blue or "nothing")
    for one in seen.elsewhere:
        log.warning(
            "release %d runs behind the proxy %s and is left alone; once no visitor comes that "
            "way: docker rm -f %s",
            one.number,
            one.settings.proxy.container,
            " ".join(replica.name for replica in one.replicas),
        )
    with Interrupts() as interrupts:
        with WayBack(plan, interrupts) as way:
            replicas = start_green(plan)
            way.touched = True
            blue = seen.release(plan.blue or 0)
            note(changes=changes(blue, plan.app, replicas[0].image_id))
            health_check(plan, replicas)
            site = render_config(plan, replicas)
            if approve_within:
                note(ask_approval(plan, replicas, approve_within, closes))
                health_check(plan, replicas)  # it may be long since
            ensure_not_cancelled()
            host = reload_nginx(plan, site)
            verified = verify_traffic(plan, replicas, blue, host)
            ensure_not_cancelled()
        # Whatever ends the run from now on.
        note(report=succeeded(plan, verified, pending=f"{PENDING}."))
        return retire(plan, verified)


@contextmanager
def refused_after(before: Observed) -> Iterator[None]:
    """A run that is refused has touched nothing, unless it put right first what a dead one left.

    Args:
        before: what it found.

    Raises:
        Failed: it was refused then.
    """
    try:
        yield
    except Refused as failure:
        if not plan_recovery(before).needed:
            raise
        what = failure.what.replace(" Nothing was touched.", "")
        told = f"{what} What a run that died had left was put right before that."
        error = Failed(told, failure.evidence)
        error.serves = failure.serves
        raise error from failure


def unchanged(seen: Observed) -> Report:
    """Nothing was done: the live release is what is wanted."""
    number = seen.live.number if seen.live else 0
    live = seen.release(number)
    return Report(
        outcome="succeeded",
        app=seen.app,
        release=number,
        image=live.image if live else "",
        blue=number,
        steps=tuple(STEPS.get() or ()),
        changed=False,
        message=f"Unchanged: release {number} of {seen.app} serves already.",
    )


def ensure_the_same_serves(before: Observed, now: Observed, to: int | None) -> None:
    """What a rollback without a number was asked to leave still serves.

    Raises:
        Refused: another run replaced it while this one waited.
    """
    if to is None and before.live and now.live and now.live.number != before.live.number:
        raise Refused(
            f"Another run made release {now.live.number} of {now.app} live meanwhile, instead of "
            f"{before.live.number}, so it is not rolled back: name a release with --to if you "
            "still want it. Nothing was touched."
        )


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


def returned_by_an_earlier_try(now: Observed) -> Report | None:
    """A report if this very run, tried again, made live what serves: it has gone back already."""
    live = now.release(now.live.number) if now.live else None
    run = str(flow_run.id or "")
    if live is None or not run or any(replica.run != run for replica in live.replicas):
        return None
    told = f"Release {live.number} of {now.app} serves: an earlier try of this run returned to it."
    return unchanged(now).model_copy(update={"message": told})


def _in_a_sentence(record: logging.LogRecord) -> bool:
    """Our own failures, and a cancel, tell everything in their sentence; a traceback would bury it.

    Nor was any of them an "unexpected exception", as which Prefect ends the log of its run.
    """
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, NonstopError | CancelledRun):
        record.exc_info = None
        return "unexpected exception" not in str(record.msg)
    return True


for name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(name).addFilter(_in_a_sentence)
