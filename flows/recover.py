"""Flow recover: finish or undo what a dead run left. Every deploy and rollback begins with it."""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import Any, cast

from prefect import flow, states
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from flows.account import begin, completed, failed, note, sentence, unexpected
from flows.artifact import publish
from flows.interrupts import Interrupts
from flows.names import recover_name
from flows.reported import NAMES, in_words, tag
from flows.way_back import WayBack, retire
from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import Failed, Locked, NonstopError, Outcome, StateUnknown
from tasks.bluegreen.model import Observed, Plan, Recovery, Report, Verified
from tasks.bluegreen.recovery import plan_recovery, plan_resumed
from tasks.bluegreen.shell import SHELLS
from tasks.health_check import health_check
from tasks.locked import locked
from tasks.observe import observe, running_proxies
from tasks.put_right import put_right
from tasks.step import STEPS
from tasks.verify_traffic import verify_traffic

HOURS = 3600
SEVERITY: list[Outcome] = ["refused", "failed", "unknown"]


@flow(name="recover", flow_run_name=recover_name, timeout_seconds=2 * HOURS, persist_result=False)
def recover(app: str | None = None, wait: float = 0) -> list[Report]:
    """Finish or undo what a run that died left behind; where nothing is wrong, change nothing.

    Args:
        app: Name of the app; empty: all apps.
        wait: Seconds to wait for another run of an app; 0: leave the app to that run.
    """
    begin(app or "")
    if app:
        tag(app)
    try:
        reports, failures = _each(app, wait)
    finally:
        SHELLS.close()
    begin(app or "")
    return cast("list[Report]", _end(reports, failures))  # callers get what is in the state


def _each(app: str | None, wait: float) -> tuple[list[Report], list[NonstopError]]:
    """A report of each app, and the failures among them; none keeps another app from its turn."""
    reports: list[Report] = []
    failures: list[NonstopError] = []
    try:
        with Engine() as engine:
            names = (app,) if app else engine.apps()
    except NonstopError as failure:
        return [], [failure]
    for name in names:
        begin(name)
        try:
            with in_words(partial(_half_done, name)):
                report = completed(_recover_one(name, wait))
        except NonstopError as failure:
            get_run_logger().error("%s", failure)
            failures.append(failure)
            report = failed(failure)
        reports.append(report)
        if report.changed:
            publish(report, report.outcome, f"nonstop recover {name}")
    return reports, failures


def _end(reports: list[Report], failures: list[NonstopError]) -> State[Any]:
    """The state that tells how it ended; of several failures with the worst outcome."""
    if not failures:
        message = " ".join(part for one in reports for part in (one.message, *one.notes))
        note(report=Report(outcome="succeeded", app="", message=message))
        return states.Completed(message=message, data=reports)
    failure = failures[0]
    if len(failures) > 1:
        failure = NonstopError(" ".join(f.what for f in failures), "\n".join(map(str, failures)))
        failure.outcome = max((f.outcome for f in failures), key=SEVERITY.index)
    report = failed(failure)
    return states.Failed(name=NAMES[failure.outcome], message=report.message, data=failure)


def _half_done(app: str, error: Exception) -> NonstopError:
    """Nobody knows how far it came."""
    return StateUnknown(
        f"{unexpected(app, error).what} What a dead run left may be half put right, so a person "
        f"has to look: `nonstop status {app}`, then `nonstop recover {app}` again."
    )


def _recover_one(app: str, wait: float) -> Report:
    with Engine() as engine:
        there = engine.releases(app)
        proxies = running_proxies(engine, there)
    if not there:  # a first deploy that died before it made anything
        return _untouched(app, f"{app}: nothing to put right, this engine has no release of it.")
    newest = there[-1].settings.proxy
    if not proxies and not any(release.running for release in there):
        message = f"{app}: nothing to put right, neither {newest.container} nor a replica runs."
        return _untouched(app, message)
    if not observe(app, newest).proxy_since and not proxies:
        message = f"{app}: nothing to put right, its proxy {newest.container} is not there."
        return _untouched(app, message)
    now = [observe(app, proxy) for proxy in proxies]
    if needed := any(plan_recovery(seen).needed for seen in now):  # else no run is kept out
        try:
            with locked(app, proxies[-1], wait) as holder:
                now = [_put_right(app, proxy, holder) for proxy in proxies]
        except Locked as busy:
            get_run_logger().info(busy.what)
            return _untouched(app, busy.what)
    for one in now:
        if needed or not one.holder:  # else that run may be about to have it served
            _ensure_served(one)
    several = len(proxies) > 1
    lives = [
        f"release {one.live.number} serves{f' behind {one.proxy}' if several else ''}"
        for one in now
        if one.live
    ]
    message = (
        f"{app}: {'put right' if needed else 'nothing to put right'}, "
        f"{' and '.join(lives) or 'no release serves'}."
    )
    get_run_logger().info(message)
    return Report(
        outcome="succeeded",
        app=app,
        release=max((one.live.number for one in now if one.live), default=None),
        steps=tuple(STEPS.get() or ()),
        changed=needed,
        message=message,
    )


def _ensure_served(seen: Observed) -> None:
    """What runs is served, as far as it should be.

    Raises:
        StateUnknown: a release runs whose site is gone, and nothing tells whether it ever served.
    """
    runs = [r for r in seen.behind if r.running and r.number not in seen.others]
    if seen.live is None and runs:
        names = " ".join(replica.name for release in runs for replica in release.replicas)
        raise StateUnknown(
            f"{seen.app}: nginx in {seen.proxy} has no site of it, though release "
            f"{runs[-1].number} runs: `nonstop deploy {seen.app}` gives it one; or, if nobody asks "
            f"for it any more, `docker rm -f {names}`."
        )


def _put_right(app: str, proxy: Proxy, holder: str) -> Observed:
    """What is behind the proxy now that nothing is left to do there."""
    seen = observe(app, proxy)
    recovery = plan_recovery(seen)
    return carry_out(recovery, seen, proxy, holder) if recovery.needed else seen


def _untouched(app: str, message: str) -> Report:
    return Report(outcome="succeeded", app=app, changed=False, message=message)


def recovered(seen: Observed, proxy: Proxy, holder: str) -> Observed:
    """What is there when nothing is left of dead runs; a live release that is bad is kept.

    The run that asks is going to replace it: that may be the fix. What a run left behind a proxy
    that the app moved from, or never arrived at, is put right as well.
    """
    if len(seen.behind) < len(seen.releases):
        with Engine() as engine:
            proxies = running_proxies(engine, seen.releases)
        for other in proxies:
            if other.container != proxy.container:
                try:
                    _as_far_as_possible(observe(seen.app, other), other, holder)
                except NonstopError as failure:  # that proxy is not this run's
                    get_run_logger().warning("%s", failure)
        seen = observe(seen.app, proxy)
    return _as_far_as_possible(seen, proxy, holder)


def _as_far_as_possible(seen: Observed, proxy: Proxy, holder: str) -> Observed:
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
        StateUnknown: what is live is not good, and there is nothing to go back to; or nobody knows
            how far it came.
    """
    with in_words(partial(_half_done, seen.app)):
        _carry_out(recovery, seen, proxy, holder)
    return observe(seen.app, proxy)


def _carry_out(recovery: Recovery, seen: Observed, proxy: Proxy, holder: str) -> None:
    put_right(recovery, seen, proxy, holder)
    if recovery.finish:
        try:
            _finish(recovery, observe(seen.app, proxy), holder)
        except Failed as failure:
            get_run_logger().warning("%s", failure)
            note(f"Release {recovery.live} was not good: {sentence(failure)}")


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
    return verify_traffic(plan, live.replicas, seen.release(plan.blue or 0))


def recover_afterwards(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a run that crashed or was cancelled: what it left, if anything, is put right."""
    app = flow_run.parameters.get("app")
    name = app.get("name") if isinstance(app, dict) else getattr(app, "name", app)
    with Engine() as engine:
        there = engine.releases(str(name))
        proxies = running_proxies(engine, there)
    try:
        needed = any(plan_recovery(observe.fn(str(name), proxy)).needed for proxy in proxies)
    finally:
        SHELLS.close()  # the runner, whose process this may be, lives on
    if needed:  # the account stays that of the run
        copy_context().run(recover, str(name), wait=60)
