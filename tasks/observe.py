"""observe: what Docker and nginx show. Reads only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import NothingKept
from tasks.bluegreen.model import Observed
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import ranges, to_create
from tasks.step import step


@step("observe", timeout=120, retries=2)
def observe(app: str, proxy: Proxy | None = None) -> Observed:
    """The releases of `app`, which one the running nginx serves, and the addresses in use.

    Args:
        app: name of the app.
        proxy: the nginx in front; by default the one that the newest release was deployed behind.

    Raises:
        Unavailable: engine or proxy cannot be asked, so nothing may be decided.
        NothingKept: without `proxy`, the app has no release to learn it from.
    """
    with Engine() as engine:
        releases = engine.releases(app)
        if proxy is None:
            if not releases:
                raise NothingKept(
                    f"There is no release of {app} on this engine: check the name, or deploy it "
                    f"with `nonstop deploy {app}`."
                )
            proxy = releases[-1].settings.proxy
        subnet, dynamic = ranges(engine, proxy)
        if to_create(engine, proxy):
            return Observed(
                app=app,
                proxy=proxy.container,
                releases=releases,
                live=None,
                strangers=engine.strangers(app),
                subnet=subnet,
                dynamic=dynamic,
            )
        nginx = Nginx(engine, proxy)
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(nginx.look, app)  # the engine needs 50 ms for it
            leaving = tuple(sorted(nginx.leaving()))
            taken, strangers = engine.addresses(proxy.network), engine.strangers(app)
            look = looking.result()
        return Observed(
            app=app,
            proxy=proxy.container,
            releases=releases,
            live=look.live,
            site=look.site,
            before=look.before,
            nginx=look.version,
            leaving=leaving,
            taken=taken,
            strangers=strangers,
            proxy_since=nginx.seen["Created"],
            subnet=subnet,
            dynamic=dynamic,
        )
