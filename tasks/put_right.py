"""put-right: what a dead run left half done is finished or undone, as far as that is safe."""

from __future__ import annotations

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.drain import GREEN_DRAIN, GREEN_GONE, drain
from tasks.bluegreen.errors import StateUnknown
from tasks.bluegreen.model import Live, Observed, Recovery
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import connect
from tasks.bluegreen.recovery import recovery_lines
from tasks.bluegreen.site import render_site
from tasks.step import say, step
from tasks.teardown_blue import remove_release


@step("put-right", timeout=300, retries=2)
def put_right(recovery: Recovery, seen: Observed, proxy: Proxy, holder: str) -> None:
    """The site's file is what nginx has loaded, the live release's replicas run, no other is new.

    The proxy is on their network.

    Args:
        recovery: what is done.
        seen: what it was planned from.
        proxy: the nginx in front.
        holder: the run that does it, as the holder of the app's lock.

    Raises:
        StateUnknown: nginx serves something else by now; nothing was removed.
    """
    for line in recovery_lines(recovery):
        say(line)
    app = recovery.app
    with Engine() as engine:
        nginx = Nginx(engine, proxy)
        if recovery.connect and recovery.connect not in (nginx.networks() or ()):  # a second try
            connect(engine, nginx, recovery.connect)
        releases = {release.number: release for release in engine.releases(app)}
        live = releases.get(recovery.live or 0)
        for replica in live.replicas if live else ():
            if live and replica.id in recovery.start:
                engine.revive(replica, live.settings)
        text, generation = _site(recovery, seen)
        if recovery.site != "is loaded":
            with nginx.installed(app, text, holder):
                nginx.reload(app, generation, patient=True)
        serves = nginx.look(app).live
        if (serves.number if serves else None) != recovery.live:
            raise StateUnknown(
                f"{app}: nginx serves {serves.number if serves else 'no release'} instead of "
                f"{recovery.live}; nothing was removed. Look at `nonstop status {app}`."
            )
        for number in recovery.remove:
            if number in releases:  # a way back that died may have taken it off just now
                limit = min(releases[number].settings.drain.limit, GREEN_DRAIN)
                drained = drain(nginx, releases[number].servers, limit, releases[number].made, say)
                remove_release(engine, releases[number], GREEN_GONE - drained.seconds)


def _site(recovery: Recovery, seen: Observed) -> tuple[str | None, str | None]:
    """The site's text and generation: what nginx has loaded, or shall load; None: no site."""
    if recovery.site == "load":
        return seen.site, _generation(seen.site)
    if recovery.site != "restore" and seen.loaded_site is not None:
        return seen.loaded_site, _generation(seen.loaded_site)
    release = seen.release(recovery.live or 0)
    if release is None:
        return None, None
    addresses = tuple(replica.address for replica in release.replicas)
    site = render_site(release.settings, release.number, addresses, seen.nginx)
    return site.text, site.generation


def _generation(text: str | None) -> str | None:
    named = Live.named_in(text)
    return named.generation if named else None
