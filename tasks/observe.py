"""observe: what Docker and nginx show. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup, NothingKept, Unavailable
from tasks.bluegreen.model import Observed, Release
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import ranges, to_create
from tasks.step import step


@step("observe", timeout=120, retries=2)
def observe(app: str, proxy: Proxy | None = None) -> Observed:
    """What `look_around` shows."""
    return look_around(app, proxy)


def look_around(app: str, proxy: Proxy | None = None) -> Observed:
    """The releases of `app`, which one the running nginx serves, and the addresses in use.

    Args:
        app: name of the app.
        proxy: the nginx in front; by default the one that serves the newest release; where none
            serves any, the one that the newest was deployed behind.

    Raises:
        Unavailable: engine or proxy cannot be asked, so nothing may be decided.
        NothingKept: without `proxy`, the app has no release to learn it from.
    """
    with Engine() as engine, ThreadPoolExecutor(1) as pool:
        proxy = proxy or _home(engine, app, engine.releases(app))
        nginx = None if to_create(engine, proxy) else Nginx(engine, proxy)
        looking = pool.submit(nginx.look, app) if nginx else None  # it takes 30 to 50 ms
        releases = engine.releases(app)
        others = tuple(_serving(engine, app, releases, apart_from=proxy.container))
        subnet, dynamic = ranges(engine, proxy)
        gone, strangers = gone_proxies(engine, releases), engine.strangers(app)
        if nginx is None or looking is None:
            return Observed(
                app=app,
                proxy=proxy.container,
                releases=releases,
                live=None,
                others=others,
                gone=gone,
                strangers=strangers,
                subnet=subnet,
                dynamic=dynamic,
            )
        taken, look = engine.addresses(proxy.network), looking.result()
        return Observed(
            app=app,
            proxy=proxy.container,
            releases=releases,
            live=look.live,
            site=look.site,
            before=look.before,
            holder=look.holder,
            left=look.left,
            others=others,
            gone=gone,
            nginx=look.version,
            taken=taken,
            strangers=strangers,
            proxy_since=nginx.seen["Created"],
            networks=nginx.networks(),
            subnet=subnet,
            dynamic=dynamic,
        )


def running_proxies(engine: Engine, releases: Iterable[Release]) -> list[Proxy]:
    """The proxies that these releases are behind and that run; that of the newest is the last."""
    found: dict[str, Proxy] = {}
    for release in releases:
        proxy = release.settings.proxy
        found.pop(proxy.container, None)
        found[proxy.container] = proxy
    return [one for one in found.values() if engine.runs(one.container)]


def gone_proxies(engine: Engine, releases: Iterable[Release]) -> tuple[str, ...]:
    """Names of the proxies that these releases are behind and that no container has any more."""
    names = {release.settings.proxy.container for release in releases}
    return tuple(sorted(name for name in names if engine.inspect(name) is None))


def _home(engine: Engine, app: str, releases: tuple[Release, ...]) -> Proxy:
    if not releases:
        raise NothingKept(
            f"There is no release of {app} on this engine: check the name, or deploy it "
            f"with `nonstop deploy {app}`."
        )
    lives = _serving(engine, app, releases)
    newest = releases[-1].settings.proxy
    return lives[max(lives)] if lives else newest


def _serving(
    engine: Engine, app: str, releases: tuple[Release, ...], apart_from: str = ""
) -> dict[int, Proxy]:
    """Of an app that moved: which release each of its proxies serves; else nothing is asked."""
    if len({release.settings.proxy.container for release in releases} | {apart_from} - {""}) < 2:
        return {}
    lives: dict[int, Proxy] = {}
    for proxy in running_proxies(engine, releases):
        if proxy.container != apart_from:
            with suppress(Unavailable, EngineHiccup):  # what it serves is not known
                live = Nginx(engine, proxy).look(app).live
                lives |= {live.number: proxy} if live else {}
    return lives
