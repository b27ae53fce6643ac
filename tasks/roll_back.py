"""roll-back: after a failure blue is live again and green is gone."""

from __future__ import annotations

import time
from contextlib import suppress

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.drain import GREEN_DRAIN, GREEN_GONE, drain
from tasks.bluegreen.errors import (
    EngineHiccup,
    LockLost,
    NonstopError,
    StateUnknown,
    Unavailable,
)
from tasks.bluegreen.images import remove_image
from tasks.bluegreen.model import PREVIEW, STANDING, Live, Plan, Release
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.site import render_site
from tasks.health_check import until_healthy
from tasks.step import say, step
from tasks.teardown_blue import remove_replicas

PATIENCE = 90.0  # seconds in which an engine or a proxy that went away has to be back
AGAIN = 1.0


@step("roll-back", timeout=900)
def roll_back(plan: Plan, why: str) -> str:
    """Nginx serves what it served before the run, and green's containers are gone.

    An engine or a proxy that is away is waited for: it may be what the run failed of.

    Args:
        plan: of the run that failed.
        why: the failure, for the log.

    Returns:
        One sentence: who serves now.

    Raises:
        StateUnknown: that could not be reached; a person has to look.
    """
    why = why.splitlines()[0]
    say(f"rolling back: {why}")
    app = plan.app
    began = time.monotonic()
    while True:
        try:
            with Engine() as engine:
                _go_back(engine, Nginx(engine, app.proxy), plan)
        except NonstopError as error:
            passing = isinstance(error, EngineHiccup | Unavailable)
            if passing and time.monotonic() - began < PATIENCE:
                time.sleep(AGAIN)
                continue
            raise StateUnknown(
                f"{app.name}: after a failure ({why}) the way back failed too: {error.what} A "
                f"person has to look: `nonstop status {app.name}` and `docker ps -a --filter "
                f"label=nonstop.app={app.name}`. When the cause is gone, `nonstop recover "
                f"{app.name}` puts it right.",
                error.evidence,
            ) from error
        if plan.blue is None:
            return "No release serves; there was none before."
        return f"Release {plan.blue} serves, as before."


def _go_back(engine: Engine, nginx: Nginx, plan: Plan) -> None:
    app = plan.app
    releases = {r.number: r for r in engine.releases(app.name)}
    green, blue = releases.get(plan.green), releases.get(plan.blue or 0)
    ours = [r for r in green.replicas if r.run == plan.run] if green else []
    _ensure_nobody_else_s(nginx, plan, theirs=green is not None and not ours)
    _ensure_blue(engine, nginx, plan, blue)
    if green is None or not ours:  # gone, or of a run that took over
        return
    drained = drain(nginx, green.servers, min(app.drain.limit, GREEN_DRAIN), green.made, say)
    _never_the_live_one(nginx, plan)
    ours_alone = green.model_copy(update={"replicas": tuple(ours)})
    remove_replicas(engine, ours_alone, GREEN_GONE - drained.seconds)
    with suppress(EngineHiccup):
        remove_image(engine, green)


def _ensure_nobody_else_s(nginx: Nginx, plan: Plan, *, theirs: bool) -> None:
    """No other run made live what nginx serves: one that lost its lock must not undo another's.

    Args:
        nginx: the proxy.
        plan: of the run that failed.
        theirs: whether green's number belongs to another run by now.

    Raises:
        LockLost: one did; nothing was touched.
    """
    live = nginx.look(plan.app.name).live
    if live is None or live.number == plan.blue or (live.number == plan.green and not theirs):
        return
    raise LockLost(
        f"nginx serves release {live.number}, which another run made live meanwhile; it was left "
        "alone."
    )


def _ensure_blue(engine: Engine, nginx: Nginx, plan: Plan, blue: Release | None) -> None:
    """The site's file and the running nginx are as before the run, and blue's replicas run."""
    app = plan.app.name
    look = nginx.look(app)
    if plan.blue is None:
        if look.live is not None or look.site is not None:
            with nginx.installed(app, None, plan.holder, unlocked=True):
                nginx.reload(app, None, patient=True)
        return
    if blue is not None:
        _start_still(engine, nginx, plan, blue)
    as_before = look.live == Live.named_in(look.site) and PREVIEW not in (look.site or "")
    if look.live and look.live.number == plan.blue and as_before:
        return
    if blue is None:
        raise StateUnknown(f"Release {plan.blue} has no replica to go back to.")
    text, generation = plan.previous_site, plan.blue_generation
    if text is None:  # a run that died had replaced the file that blue was loaded from
        site = render_site(
            blue.settings, blue.number, tuple(r.address for r in blue.replicas), look.version
        )
        text, generation = site.text, site.generation
    began = time.monotonic()
    with nginx.installed(app, text, plan.holder, unlocked=True):
        nginx.reload(app, generation, patient=True)
    say(f"release {plan.blue} serves again, {time.monotonic() - began:.2f} s after the decision")


def _start_still(engine: Engine, nginx: Nginx, plan: Plan, blue: Release) -> None:
    """Blue's replicas that stood still were started; where none ran, they are healthy.

    Where one runs it serves at once, and nginx passes over those that are not up yet.
    """
    still = [replica for replica in blue.replicas if replica.status in STANDING]
    if not still:
        return
    say(f"starting {len(still)} replicas of release {blue.number} that stand still")
    for replica in still:
        engine.revive(replica, blue.settings)
    if blue.running:
        return
    started = tuple(seen for r in still if (seen := engine.replica(r.id)) is not None)
    its = {"app": blue.settings, "green": blue.number, "origin": blue.origin}
    until_healthy(engine, nginx, plan.model_copy(update=its), started)


def _never_the_live_one(nginx: Nginx, plan: Plan) -> None:
    live = nginx.look(plan.app.name).live
    if live is not None and live.number == plan.green:
        raise StateUnknown(f"nginx still serves release {plan.green}; it was not removed.")
