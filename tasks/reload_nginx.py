"""reload-nginx: nginx serves green, proven."""

from __future__ import annotations

import time

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import CutoverUnproven
from tasks.bluegreen.model import Plan, Site
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.probe import FrontDoor
from tasks.step import say, step

SETTLE = 5.0  # seconds in which the front door has to answer with green's number


@step("reload-nginx", timeout=180, retries=2)
def reload_nginx(plan: Plan, site: Site) -> str:
    """The site is installed and loaded, and the front door answers with green's number.

    No worker of the generation before accepts connections any more.

    Returns:
        The host name by which it was asked.

    Raises:
        LockLost: another run may be changing the app, so nothing was switched.
        CutoverUnproven: with nginx's own reason where it gave one.
    """
    with Engine() as engine:
        nginx = Nginx(engine, plan.app.proxy)
        with nginx.installed(site.app, site.text, plan.holder):
            began = time.monotonic()
            nginx.reload(site.app, site.generation)
            seconds = time.monotonic() - began
        door = FrontDoor(engine, nginx, plan.app)
        while (answer := door.get(plan.app.verify.path, plan.app.verify.timeout)).release != str(
            site.number
        ):
            if time.monotonic() - began > seconds + SETTLE:
                raise CutoverUnproven(
                    f"{site.app}: nginx loaded release {site.number}, but the front door "
                    f"{door.base} (host {door.host}) says "
                    f"{answer.release or 'no release'} with {answer}: if visitors come another "
                    "way, say through TLS, name it in proxy.url; and in a template of your own an "
                    "add_header in a location hides the one of proof.conf.j2."
                )
            time.sleep(0.1)
    say(f"cutover to release {site.number} proven {seconds:.2f} s after the reload")
    return door.host
