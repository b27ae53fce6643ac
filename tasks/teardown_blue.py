"""teardown-blue: blue's last requests have ended; it is stopped and kept for a rollback."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.drain import drain
from tasks.bluegreen.errors import EngineHiccup, StateUnknown
from tasks.bluegreen.images import remove_image
from tasks.bluegreen.model import Drained, Live, Observed, Plan, Release
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.plan import plan_retirement
from tasks.observe import gone_proxies
from tasks.step import say, step


@step("teardown-blue", timeout=4500, retries=2)
def teardown_blue(plan: Plan) -> Drained:
    """Nobody asks blue any more; it and older releases are stopped, kept or removed.

    Raises:
        StateUnknown: nginx does not serve green at this moment, so nothing was stopped.
    """
    app = plan.app
    with Engine() as engine:
        nginx = Nginx(engine, app.proxy)
        releases = engine.releases(app.name, before=plan.green)
        every = Observed(
            app=app.name,
            proxy=app.proxy.container,
            releases=releases,
            live=Live(number=plan.green, generation=""),  # asked of nginx before anything stops
            gone=gone_proxies(engine, releases),
        )
        older = every.behind
        up = [release for release in older if not release.standing]
        servers = frozenset[str]().union(*(release.servers for release in up))
        made = min((release.made for release in up), default=time.time())
        drained = drain(nginx, servers, app.drain.limit, made, say)
        live = ensure_green_serves(nginx, plan)
        retirement = plan_retirement(every.model_copy(update={"live": live}), app.keep)

        def retire(release: Release) -> None:
            if release.number in retirement.remove:
                remove_release(engine, release)
            elif release.number in retirement.stop:
                stop(engine, release)

        with ThreadPoolExecutor(len(older) or 1) as pool:
            list(pool.map(retire, older))
    cut = f", the limit, with {drained.left} connections left" if drained.left else ""
    say(
        f"drained in {drained.seconds:.1f} s{cut}; stopped {list(retirement.stop)}, kept "
        f"{list(retirement.keep)}, removed {list(retirement.remove)}"
    )
    return drained


def ensure_green_serves(nginx: Nginx, plan: Plan) -> Live:
    """The running nginx serves green at this moment.

    Raises:
        StateUnknown: it does not.
    """
    live = nginx.serves(plan.app.name) or nginx.look(plan.app.name).live
    if live is None or live.number != plan.green:
        raise StateUnknown(
            f"{plan.app.name}: nginx serves {live.number if live else 'no release'}, not "
            f"{plan.green}, which this run made live; nothing was stopped. Look at "
            f"`nonstop status {plan.app.name}`."
        )
    return live


def stop(engine: Engine, release: Release, longest: float = math.inf) -> None:
    """Every replica was stopped with its own signal and grace, and stays stopped.

    Args:
        engine: where.
        release: which.
        longest: seconds that the grace may have at most.
    """
    with ThreadPoolExecutor(len(release.replicas)) as pool:
        list(pool.map(lambda r: engine.retire(r, release.settings, longest), release.replicas))


def remove_replicas(engine: Engine, release: Release, longest: float = math.inf) -> None:
    """None of its containers is left; those that ran were stopped as `stop` does."""
    if not release.standing:
        with suppress(EngineHiccup):  # what cannot be stopped can be removed
            stop(engine, release, longest)
    with ThreadPoolExecutor(len(release.replicas)) as pool:
        list(pool.map(lambda replica: engine.remove(replica.id), release.replicas))


def remove_release(engine: Engine, release: Release, longest: float = math.inf) -> None:
    """None of its containers is left, nor its image where nonstop pulled it."""
    remove_replicas(engine, release, longest)
    remove_image(engine, release)
