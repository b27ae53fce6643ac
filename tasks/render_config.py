"""render-config: the new site as text, accepted by the proxy's own nginx beside the live one."""

from __future__ import annotations

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.model import Plan, Replica, Site
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.site import render_site
from tasks.step import say, step


@step("render-config", timeout=180, retries=2)
def render_config(plan: Plan, replicas: tuple[Replica, ...]) -> Site:
    """The site that serves green; nginx has tried it on a copy of its configuration.

    Raises:
        BadInput: the template does not render.
        SiteRejected: in nginx's words.
    """
    with Engine() as engine:
        nginx = Nginx(engine, plan.app.proxy)
        addresses = tuple(replica.address for replica in replicas)
        site = render_site(plan.app, plan.green, addresses, plan.nginx)
        nginx.check(site)
    say(
        f"site of release {plan.green} accepted by nginx {'.'.join(map(str, plan.nginx))} "
        f"(generation {site.generation})"
    )
    return site
