"""Flows deploy and rollback: the story, and the way back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import flow
from prefect.exceptions import Abort, Pause
from prefect.logging import get_run_logger

from tasks.bluegreen.app import App, Proxy
from tasks.bluegreen.errors import NonstopError
from tasks.bluegreen.model import Drained, Plan, Report, Step
from tasks.bluegreen.plan import plan_deploy, plan_rollback
from tasks.health_check import health_check
from tasks.observe import observe
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
def deploy(app: App, image: str | None = None) -> Report:
    """Replace an app's live release by a new one; visitors notice nothing.

    Args:
        app: What runs, how it is reached, and when it is good.
        image: Image to deploy instead of the app's own; empty: the app's own.
    """
    if image:
        app = App.model_validate(app.model_dump() | {"image": image})
    STEPS.set([])
    preflight(app)
    return replace(plan_deploy(app, observe(app.name, app.proxy)))


@flow(name="rollback", timeout_seconds=3 * HOURS, persist_result=False)
def rollback(app: str, proxy: Proxy | None = None, to: int | None = None) -> Report:
    """Return to an earlier release: its image, environment and settings, under a new number.

    Args:
        app: Name of the app.
        proxy: The nginx in front, if it is not the default one.
        to: Number of the release to return to; empty: the one before the live one.
    """
    STEPS.set([])
    seen = observe(app, proxy or Proxy())
    plan = plan_rollback(seen, to)
    preflight(plan.app, rollback=True)
    return replace(plan)


def replace(plan: Plan) -> Report:
    """Green instead of blue; or, after any failure, blue as before and the failure raised."""
    log = get_run_logger()
    log.info("%s: release %d replaces %s", plan.app.name, plan.green, plan.blue or "nothing")
    try:
        replicas = start_green(plan)
        health_check(plan, replicas)
        site = render_config(plan, replicas)
        reload_nginx(plan, site)
        verified = verify_traffic(plan, replicas)
    except (Abort, Pause):
        raise
    except BaseException as failure:  # a cancelled run raises no Exception
        with undisturbed():
            serves = roll_back(
                plan, str(failure).splitlines()[0] if str(failure) else type(failure).__name__
            )
        log.error(serves)  # noqa: TRY400  # the failure itself is raised and told once, below
        if isinstance(failure, NonstopError):
            failure.serves = serves
        raise
    drained, pending = None, ""
    try:
        drained = teardown_blue(plan)
    except NonstopError as error:  # green serves and is good: a failed cleanup undoes nothing
        pending = f" Cleanup is pending, the next run finishes it: {error}"
        log.warning(pending)
    return _report(plan, drained, pending).model_copy(update={"verified": verified})


def _report(plan: Plan, drained: Drained | None, pending: str) -> Report:
    steps: list[Step] = STEPS.get() or []
    return Report(
        outcome="succeeded",
        app=plan.app.name,
        release=plan.green,
        image=plan.app.image,
        blue=plan.blue,
        steps=tuple(steps),
        drained=drained,
        cleanup="pending" if pending else "done",
        message=f"Release {plan.green} of {plan.app.name} serves.{pending}",
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Neither SIGTERM nor SIGINT ends what is within: a second one would cut the way back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
