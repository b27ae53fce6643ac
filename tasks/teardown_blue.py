"""teardown-blue: blue's last requests have ended; it is stopped and kept for a rollback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import StateUnknown
from tasks.bluegreen.images import remove_image
from tasks.bluegreen.model import Drained, Observed, Plan, Release
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.plan import plan_retirement
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
        seen = serving_green(engine, nginx, plan)
        older = [release for release in seen.releases if release.number < plan.green]
        servers = frozenset[str]().union(*(r.servers for r in older if r.running))
        drained = nginx.drain(servers, app.drain.limit, plan.leaving, say)
        retirement = plan_retirement(serving_green(engine, nginx, plan), app.keep)
        for release in older:
            if release.number in retirement.stop:
                stop(engine, release)
            if release.number in retirement.remove:
                _remove(engine, release)
    cut = f", the limit, with {drained.left} connections left" if drained.left else ""
    say(
        f"drained in {drained.seconds:.1f} s{cut}; stopped {list(retirement.stop)}, kept "
        f"{list(retirement.keep)}, removed {list(retirement.remove)}"
    )
    return drained


def serving_green(engine: Engine, nginx: Nginx, plan: Plan) -> Observed:
    """What is there, after making sure that the running nginx serves green.

    Raises:
        StateUnknown: it does not.
    """
    look = nginx.look(plan.app.name)
    if look.live is None or look.live.number != plan.green:
        raise StateUnknown(
            f"{plan.app.name}: nginx serves {look.live.number if look.live else 'no release'}, not "
            f"{plan.green}, which this run made live; nothing was stopped. Look at "
            f"`nonstop status {plan.app.name}`."
        )
    return Observed(
        app=plan.app.name,
        live=look.live,
        site=look.site,
        releases=engine.releases(plan.app.name),
    )


def stop(engine: Engine, release: Release) -> None:
    """Every replica was stopped with its own signal and grace, and stays stopped."""
    with ThreadPoolExecutor(len(release.replicas)) as pool:
        list(
            pool.map(
                lambda r: engine.retire(r, release.settings.stop_grace_period), release.replicas
            )
        )


def _remove(engine: Engine, release: Release) -> None:
    for replica in release.replicas:
        engine.remove(replica.id)
    remove_image(engine, release.pinned)
