"""Flow recover: finish or undo what a dead run left. Every deploy and rollback begins with it."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows.interrupts import Interrupts
from flows.names import recover_name
from flows.way_back import WayBack, retire
from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import Failed, Locked, NonstopError, StateUnknown
from tasks.bluegreen.model import Observed, Plan, Recovery, Report, Verified
from tasks.bluegreen.recovery import plan_recovery, plan_resumed
from tasks.health_check import health_check
from tasks.locked import locked
from tasks.observe import observe
from tasks.put_right import put_right
from tasks.step import STEPS
from tasks.verify_traffic import verify_traffic

HOURS = 3600


@flow(name="recover", flow_run_name=recover_name, timeout_seconds=2 * HOURS, persist_result=False)
def recover(app: str | None = None, wait: float = 0) -> list[Report]:
    """Finish or undo what a run that died left behind; where nothing is wrong, change nothing.

    Args:
        app: Name of the app; empty: all apps.
        wait: Seconds to wait for another run of an app; 0: leave the app to that run.
    """
    STEPS.set([])
    with Engine() as engine:
        names = (app,) if app else engine.apps()
    reports: list[Report] = []
    failures: list[NonstopError] = []
    for name in names:
        try:
            reports.append(_recover_one(name, wait))
        except NonstopError as failure:  # the others have their turn, too
            failures.append(failure)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise StateUnknown(" ".join(f.what for f in failures), "\n".join(map(str, failures)))
    return reports


def _recover_one(app: str, wait: float) -> Report:
    with Engine() as engine:
        there = engine.releases(app)
    if not there:  # a first deploy that died before it made anything
        message = f"{app}: nothing to put right, this engine has no release of it."
        return Report(outcome="succeeded", app=app, message=message)
    proxy = there[-1].settings.proxy
    if not observe(app, proxy).proxy_since:
        message = f"{app}: nothing to put right, its proxy {proxy.container} is not there."
        return Report(outcome="succeeded", app=app, message=message)
    try:
        with locked(app, proxy, wait) as holder:
            seen = observe(app, proxy)
            recovery = plan_recovery(seen)
            now = carry_out(recovery, seen, proxy, holder) if recovery.needed else seen
    except Locked as busy:
        get_run_logger().info(busy.what)
        return Report(outcome="succeeded", app=app, message=busy.what)
    serves = f"release {now.live.number} serves" if now.live else "no release serves"
    message = f"{app}: {'put right' if recovery.needed else 'nothing to put right'}, {serves}."
    get_run_logger().info(message)
    return Report(
        outcome="succeeded",
        app=app,
        release=now.live.number if now.live else None,
        steps=tuple(STEPS.get() or ()),
        message=message,
    )


def recovered(seen: Observed, proxy: Proxy, holder: str) -> Observed:
    """What is there when nothing is left of dead runs; a live release that is bad is kept.

    The run that asks is going to replace it: that may be the fix.
    """
    recovery = plan_recovery(seen)
    if not recovery.needed:
        return seen
    try:
        return carry_out(recovery, seen, proxy, holder)
    except NonstopError as failure:
        get_run_logger().warning("%s", failure)
        return observe(seen.app, proxy)


def carry_out(recovery: Recovery, seen: Observed, proxy: Proxy, holder: str) -> Observed:
    """The recovery is done; what is there now.

    Raises:
        StateUnknown: what is live is not good, and there is nothing to go back to.
    """
    put_right(recovery, seen, proxy, holder)
    if recovery.finish:
        try:
            _finish(recovery, observe(seen.app, proxy), holder)
        except Failed as failure:  # it went back
            get_run_logger().warning("%s", failure)
    return observe(seen.app, proxy)


def _finish(recovery: Recovery, seen: Observed, holder: str) -> None:
    plan = plan_resumed(seen, recovery, holder)
    with Interrupts() as interrupts:
        if plan.blue is None and recovery.site != "load":
            try:
                verified = _verify(plan, seen)
            except Failed as failure:
                raise StateUnknown(
                    f"Release {plan.green} of {plan.app.name} serves and is not good "
                    f"({failure.what}), and there is no other to go back to: deploy a good one.",
                    failure.evidence,
                ) from failure
        else:
            with WayBack(plan, interrupts, touched=True):
                verified = _verify(plan, seen)
        retire(plan, verified)


def _verify(plan: Plan, seen: Observed) -> Verified:
    live = seen.release(plan.green)
    if live is None:
        raise Failed(f"The containers of release {plan.green}, which nginx serves, are gone.")
    health_check(plan, live.replicas)
    return verify_traffic(plan, live.replicas)


def recover_afterwards(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a run that crashed or was cancelled: what it left, if anything, is put right."""
    app = flow_run.parameters.get("app")
    name = app.get("name") if isinstance(app, dict) else getattr(app, "name", app)
    with Engine() as engine:
        there = engine.releases(str(name))
    if there and plan_recovery(observe.fn(str(name))).needed:
        recover(str(name), wait=60)
