"""preflight: everything that can be refused is refused here, before anything is touched."""

from __future__ import annotations

from collections.abc import Callable

from tasks.bluegreen.app import App
from tasks.bluegreen.containers import Engine
from tasks.bluegreen.environment import environment, render_text
from tasks.bluegreen.errors import BadInput, SiteRejected, Unavailable
from tasks.bluegreen.images import ensure_proxy_image, ensure_room, pin
from tasks.bluegreen.look import Look
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.plan import plan_deploy
from tasks.bluegreen.probe import FromProxy, nearest
from tasks.bluegreen.proxy import moves_ports, provided, published, ranges, to_create
from tasks.bluegreen.site import render_site
from tasks.observe import look_around
from tasks.secret import secret
from tasks.step import say, step

NOWHERE = tuple(f"192.0.2.{last}" for last in range(1, 65))  # addresses for documentation
ANY = (1, 30, 0)  # a version of nginx, before the real one is known
TO_WRITE = "mount it writable, or set proxy.directory to one that is and that nginx includes"


@step("preflight", timeout=1200, retries=2)
def preflight(app: App, *, rollback: bool = False) -> None:
    """The App can be deployed here: its files, secrets and networks exist, nginx takes its site.

    The proxy, where it is for nonstop to create, is created here; it and its network go again when
    it turns out that it does not take the site. Its image and the App's are pulled before.

    Args:
        app: what is going to be deployed.
        rollback: its environment comes from the kept containers, so it is not made again.

    Raises:
        Refused: with what is wrong, where, and what to do.
    """
    proxy = app.proxy
    with Engine() as engine:
        ensure_described_well(engine, app, None if rollback else secret)
        there = not to_create(engine, proxy)
        if not there:
            ensure_proxy_image(engine, app, say)
        if not rollback and (app.pull_policy == "never" or not there):
            pin(engine, app, say)
        pulls = app.pull_policy != "never" and not rollback
        if there:  # before it is joined to a network: it may be no nginx at all
            look = ensure_fits(engine, Nginx(engine, proxy), app, pulls=pulls)
        with provided(engine, app) as nginx:
            if not there:
                look = ensure_fits(engine, nginx, app, pulls=pulls)
                plan_deploy(app, look_around(app.name, proxy))  # names and addresses are free
            if not look.curl and isinstance(nearest(engine, nginx), FromProxy):
                raise Unavailable(
                    f"The replicas cannot be reached from here, and the proxy {proxy.container} "
                    "has no curl with which they could be asked from there: use an image with "
                    "curl, or deploy from the engine's own host."
                )


def ensure_fits(engine: Engine, nginx: Nginx, app: App, *, pulls: bool) -> Look:
    """The proxy takes the App's site, and the disk its containers; nothing was touched."""
    look = ensure_site_loads(nginx, app)
    ensure_room(engine, app, look.free, pulls=pulls)
    return look


def ensure_described_well(engine: Engine, app: App, secret: Callable[[str], str] | None) -> None:
    """Every template of the App renders; its files, secrets, networks and front door exist.

    The network between proxy and replicas has room for fixed addresses, or is not there yet.

    Args:
        engine: where networks and proxy are.
        app: what is going to be deployed.
        secret: gives the value of a named secret; None: the environment is not looked at.

    Raises:
        BadInput: with what is wrong, where, and what to do.
        Unavailable: that network has none.
    """
    render_site(app, 0, NOWHERE[: app.replicas], ANY)
    if secret is not None:
        environment(app, 0, 1, secret)
        ensure_checks(app)
    for value in app.health.headers.values():
        render_text(app, "health.headers", value, 0, 1)
    for network in app.networks:
        if engine.network(network) is None:
            raise BadInput(
                f"{app.name}: there is no Docker network {network}: create it "
                "or remove it from `networks`."
            )
    ranges(engine, app.proxy)
    ensure_reachable(engine, app)


def ensure_checks(app: App) -> None:
    """Docker's health check is one: of what it does not know it says nothing, and all is healthy.

    Raises:
        BadInput: it is a list that starts with something else than its kind.
    """
    test = app.healthcheck.test if app.healthcheck else ""
    if isinstance(test, tuple) and test and test[0] not in ("CMD", "CMD-SHELL", "NONE"):
        raise BadInput(
            f'{app.name}: healthcheck.test: the list starts with {test[0]!r}, not with "CMD", '
            '"CMD-SHELL" or "NONE": write one of these before it.'
        )


def ensure_reachable(engine: Engine, app: App) -> None:
    """A proxy that publishes ports publishes the one that the site listens on.

    Raises:
        BadInput: visitors would not meet the site.
    """
    proxy = app.proxy
    ports = published(engine, proxy)
    if proxy.url is None and ports and proxy.listen not in ports:
        raise BadInput(
            f"{app.name}: the site would listen on port {proxy.listen} (proxy.listen), of which "
            f"the proxy {proxy.container} publishes nothing, only of "
            f"{', '.join(map(str, sorted(ports)))}: change proxy.listen, or what the container "
            "publishes (proxy.publish holds for a new one), or name the front door in proxy.url."
        )


def ensure_stays(nginx: Nginx, app: App) -> None:
    """No visitor of the proxy, of whatever site, is refused because it joins the App's network.

    One that was on it while a release ran there joins it again whatever that takes.

    Raises:
        BadInput: with a network's name that would do.
    """
    network = app.proxy.network
    first = moves_ports(nginx, network)
    if first and not any(
        release.running and release.settings.proxy.network == network
        for release in nginx.engine.releases(app.name)
    ):
        raise BadInput(
            f"{app.name}: to connect {app.proxy.container} to network {network} would close its "
            f"published ports for a moment, as Docker opens them through the network whose name "
            f"comes first, which is {first} now: set proxy.network to a name that comes later, "
            f"like {first}-{app.name}. Nothing was touched."
        )


def ensure_site_loads(nginx: Nginx, app: App) -> Look:
    """The proxy's own nginx accepts a site of this App beside all others; nothing was touched.

    Returns:
        What the proxy shows.

    Raises:
        BadInput: with nginx's own words; or the proxy would have to join a network that takes its
            ports away for a moment.
        Unavailable: the proxy's configuration is broken without it, too; or no site can be put
            where nginx reads them.
    """
    look = nginx.look(app.name)
    try:
        nginx.check(render_site(app, 0, NOWHERE[: app.replicas], look.version))
    except SiteRejected as error:
        raise BadInput(error.what + " Nothing was touched.", error.evidence) from error
    ensure_stays(nginx, app)
    if why := nginx.unwritable():
        raise Unavailable(
            f"No site can be put into {nginx.directory} in {app.proxy.container} ({why}): "
            f"{TO_WRITE}. Nothing was touched."
        )
    return look
