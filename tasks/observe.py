"""observe: what Docker and nginx show. Reads only."""

from __future__ import annotations

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.model import Observed
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import POOLS, dynamic_part, ranges
from tasks.step import step


@step("observe", timeout=120, retries=2)
def observe(app: str, proxy: Proxy) -> Observed:
    """The releases of `app`, which one the running nginx serves, and the addresses in use.

    Raises:
        Unavailable: engine or proxy cannot be asked, so nothing may be decided.
    """
    with Engine() as engine:
        releases = engine.releases(app, proxy.network)
        if proxy.image is not None and engine.inspect(proxy.container) is None:
            return Observed(
                app=app,
                releases=releases,
                live=None,
                subnet=POOLS[0],
                dynamic=dynamic_part(POOLS[0]),
            )
        look = Nginx(engine, proxy).look(app)
        subnet, dynamic = ranges(engine, proxy)
        return Observed(
            app=app,
            releases=releases,
            live=look.live,
            site=look.site,
            nginx=look.version,
            taken=engine.addresses(proxy.network),
            subnet=subnet,
            dynamic=dynamic,
        )
