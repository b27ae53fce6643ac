"""roll-back: after a failure blue is live again and green is gone."""

from __future__ import annotations

import time
from contextlib import suppress

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup, NonstopError, StateUnknown
from tasks.bluegreen.images import remove_image
from tasks.bluegreen.model import Plan, Release
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.site import render_site
from tasks.step import say, step

GREEN_DRAIN = 20.0  # seconds for requests that green is still answering; it failed, blue waits


@step("roll-back", timeout=300)
def roll_back(plan: Plan, why: str) -> str:
    """Nginx serves what it served before the run, and green's containers are gone.

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
    try:
        with Engine() as engine:
            nginx = Nginx(engine, app.proxy)
            releases = {r.number: r for r in engine.releases(app.name)}
            green, blue = releases.get(plan.green), releases.get(plan.blue or 0)
            earlier = nginx.leaving()  # they serve blue or what was before it, but never green
            _ensure_blue(nginx, plan, blue)
            if green is not None:
                nginx.drain(green.servers, min(app.drain.limit, GREEN_DRAIN), earlier, say)
                _never_the_live_one(nginx, plan)
                for replica in green.replicas:
                    engine.remove(replica.id)
                if app.pull_policy != "never":  # what a registry has does not pile up here
                    with suppress(EngineHiccup):
                        remove_image(engine, green.pinned)
    except NonstopError as error:
        raise StateUnknown(
            f"{app.name}: after a failure ({why}) the way back failed too: {error.what} A person "
            f"has to look: `nonstop status {app.name}` and `docker ps -a --filter "
            f"label=nonstop.app={app.name}`.",
            error.evidence,
        ) from error
    if plan.blue is None:
        return "No release serves; there was none before."
    return f"Release {plan.blue} serves, as before."


def _ensure_blue(nginx: Nginx, plan: Plan, blue: Release | None) -> None:
    """The site's file and the running nginx are as before the run, and blue's replicas run."""
    app = plan.app.name
    look = nginx.look(app)
    live = look.live.number if look.live else None
    ahead = look.site is not None and (look.live is None or look.live.generation not in look.site)
    if live == plan.blue and not ahead:
        return
    if plan.blue is None:
        nginx.install(app, None, plan.holder, unlocked=True)
        nginx.reload(app, None, patient=True)
        return
    if blue is None or not blue.running:
        raise StateUnknown(f"Release {plan.blue} has no running replica to go back to.")
    text, generation = plan.previous_site, plan.blue_generation
    if text is None:  # a run that died had replaced the file that blue was loaded from
        site = render_site(
            blue.settings, blue.number, tuple(r.address for r in blue.replicas), look.version
        )
        text, generation = site.text, site.generation
    began = time.monotonic()
    nginx.install(app, text, plan.holder, unlocked=True)
    nginx.reload(app, generation, patient=True)
    say(f"release {plan.blue} serves again, {time.monotonic() - began:.2f} s after the decision")


def _never_the_live_one(nginx: Nginx, plan: Plan) -> None:
    live = nginx.look(plan.app.name).live
    if live is not None and live.number == plan.green:
        raise StateUnknown(f"nginx still serves release {plan.green}; it was not removed.")
