"""What would stop a deploy here, or make visitors notice it; each with its remedy."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from flows.parts import away
from flows.pushes.push import Subscriber
from flows.windows import deployment_of
from tasks.bluegreen.app import App, Proxy
from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.environment import MASK
from tasks.bluegreen.errors import NonstopError
from tasks.bluegreen.images import ensure_room
from tasks.bluegreen.labels import config
from tasks.bluegreen.look import Look
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.proxy import to_create
from tasks.bluegreen.recovery import plan_recovery, recovery_lines
from tasks.bluegreen.site import render_site
from tasks.observe import observe, running_proxies
from tasks.preflight import NOWHERE, TO_WRITE, ensure_described_well, ensure_site_loads

API = (1, 40)  # of Docker 19.03, the first with all that is asked of it
READABLE = ("json-file", "local", "journald")  # logging drivers that can be read
KEEPS = (1, 27, 4)  # the first nginx whose reload can spare keep-alive clients


class Finding(NamedTuple):
    """One thing that was looked at."""

    where: str
    what: str
    level: Literal["fine", "warning", "problem"] = "fine"
    remedy: str = ""


def examine(apps: Sequence[App], *, others: bool = False) -> Iterator[Finding]:
    """Everything that can be asked without touching anything.

    Args:
        apps: those that are described; none: engine and Prefect alone.
        others: whether these are all, so that any other app's containers are left over.
    """
    yield from _prefect(apps)
    try:
        engine = Engine()
    except NonstopError as error:
        yield Finding("engine", error.what, "problem")
        return
    with engine:
        yield from _guarded("engine", partial(_engine, engine))
        broken = set()
        for proxy in {app.proxy.container: app.proxy for app in apps}.values():
            for finding in _guarded(proxy.container, partial(_proxy, engine, proxy)):
                yield finding
                broken |= {finding.where} if finding.level == "problem" else set()
        for app in apps:
            look = _described if app.proxy.container in broken else _app
            yield from _guarded(app.name, partial(look, engine, app))
        if others:
            yield from _guarded("engine", partial(_left_over, engine, apps))


def _guarded(where: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What is found, up to what cannot be asked."""
    try:
        yield from look()
    except NonstopError as error:
        yield Finding(where, " ".join(str(error).split()), "problem")


def _prefect(apps: Sequence[App]) -> Iterator[Finding]:
    url = PREFECT_API_URL.value()
    if not url:
        yield Finding("Prefect", "no PREFECT_API_URL: the command runs Prefect's embedded server")
        return
    error = away(url)
    if error is None:
        yield Finding("Prefect", f"the server at {url} answers")
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            for deployment in filter(None, (deployment_of(client, app) for app in apps)):
                yield from _schedules(deployment)
    else:
        remedy = "start it with `prefect server start`, or unset PREFECT_API_URL"
        yield Finding("Prefect", f"no server answers at {url} ({error})", "problem", remedy)


def _schedules(deployment: DeploymentResponse) -> Iterator[Finding]:
    """An active schedule that takes off what a push deployed."""
    given = deployment.parameters
    try:
        app = Subscriber.model_validate(given["app"] | {"deployment": deployment.id})
    except (ValidationError, TypeError):
        return  # its runs say what is wrong
    active = [one for one in deployment.schedules if one.active and not deployment.paused]
    images = {one.parameters.get("image") or given.get("image") or app.image for one in active}
    for image in sorted(filter(app.leaves_behind, images)):
        yield Finding(
            app.name,
            f"its schedule deploys {image} as written, also after a push deployed a newer one by "
            f"deploy_on_push {app.deploy_on_push}",
            "warning",
            "give both a tag that moves with each push, like `stable`, or take the schedule out",
        )


def _engine(engine: Engine) -> Iterator[Finding]:
    with engine_words("describe itself"):
        about, info = engine.api.version(), engine.api.info()
    yield of_engine(about["Version"], about["ApiVersion"])
    if not info.get("LiveRestoreEnabled"):
        yield Finding(
            "engine",
            "live-restore is off: a restart of the engine stops every container, and visitors "
            "notice",
            "warning",
            'set `"live-restore": true` in the engine\'s daemon.json',
        )


def of_engine(version: str, api: str) -> Finding:
    """Whether an engine is new enough."""
    if tuple(map(int, api.split("."))) < API:
        remedy = "use Docker 19.03 or later"
        return Finding("engine", f"Docker {version}, API {api}", "problem", remedy)
    return Finding("engine", f"Docker {version}, API {api}")


def _proxy(engine: Engine, proxy: Proxy) -> Iterator[Finding]:
    where = proxy.container
    if to_create(engine, proxy):
        behind = [name for name in engine.apps() if _is_behind(engine, name, where)]
        if behind:
            what = f"is not there, though {', '.join(behind)} run behind it, so nobody reaches them"
            yield Finding(where, what, "problem", f"`nonstop deploy {behind[0]}` makes it anew")
        else:
            what = f"is not there yet; the first deploy creates it from {proxy.image}"
            yield Finding(where, what)
        return
    nginx = Nginx(engine, proxy)
    if nginx.ours and proxy.image and proxy.image != config(nginx.seen, "Image"):
        what = f"was created from {config(nginx.seen, 'Image')}, not from {proxy.image}"
        remedy = f"when nobody minds, `docker rm -f {where}`, then deploy: it is made anew"
        yield Finding(where, what, "warning", remedy)
    nginx.check(None)
    look = nginx.look("nobody")
    yield of_nginx(where, look.version)
    if why := nginx.unwritable():
        what = f"no site can be put into {nginx.directory} ({why})"
        yield Finding(where, what, "problem", TO_WRITE)
    host = nginx.seen["HostConfig"]
    if host["LogConfig"]["Type"] not in READABLE:
        yield Finding(
            where,
            f"its log driver {host['LogConfig']['Type']} cannot be read, so visitors' own results "
            "don't count",
            "warning",
            f"use one of {', '.join(READABLE)}",
        )
    yield from of_log(where, host["LogConfig"], ours=nginx.ours)
    if host["RestartPolicy"]["Name"] not in ("always", "unless-stopped"):
        remedy = f"`docker update --restart unless-stopped {where}`"
        yield Finding(where, "does not come back after a reboot", "warning", remedy)
    yield from _single_files(engine, nginx)
    yield from _room(engine, where, look)


def of_nginx(where: str, numbers: tuple[int, ...]) -> Finding:
    """Whether an nginx of this version spares keep-alive clients."""
    version = f"nginx {'.'.join(map(str, numbers))}, whose configuration loads"
    if numbers >= KEEPS:
        return Finding(where, version)
    return Finding(
        where,
        f"{version}; it has no keepalive_min_timeout, so a reload may reset keep-alive clients",
        "warning",
        f"use nginx {'.'.join(map(str, KEEPS))} or later",
    )


def _is_behind(engine: Engine, app: str, proxy: str) -> bool:
    releases = engine.releases(app)
    return any(one.running and one.settings.proxy.container == proxy for one in releases)


def of_log(where: str, log: dict[str, Any], *, ours: bool) -> Iterator[Finding]:
    """A log that nothing keeps from filling the disk.

    Args:
        where: the proxy.
        log: its HostConfig.LogConfig.
        ours: whether nonstop created it.
    """
    size = (log["Config"] or {}).get("max-size", "-1")
    if log["Type"] == "json-file" and size.startswith("-"):
        yield Finding(
            where,
            "its log, of a line for each request, grows for ever: HostConfig.LogConfig is "
            "json-file without a max-size",
            "warning",
            f"when nobody minds, `docker rm -f {where}`, then deploy: it is made anew"
            if ours
            else "create it anew with `--log-opt max-size=20m --log-opt max-file=5`",
        )


def _single_files(engine: Engine, nginx: Nginx) -> Iterator[Finding]:
    """Bind mounts of one file: they keep the old one when it is replaced on the host."""
    for mount in nginx.seen["Mounts"]:
        place = mount["Destination"]
        if mount["Type"] != "bind" or not place.startswith("/etc/nginx"):
            continue
        code, _ = engine.exec(nginx.id, ["sh", "-c", f"[ -f {shlex.quote(place)} ]"])
        if code == 0:
            yield Finding(
                nginx.proxy.container,
                f"{place} is a bind mount of a single file: when an editor replaces it on the "
                "host, nginx keeps reading the old one",
                "warning",
                "mount its directory instead",
            )


def _room(engine: Engine, where: str, look: Look) -> Iterator[Finding]:
    yield Finding(where, f"{look.free >> 20} MiB are free on the engine's disk")
    with engine_words("list networks"):
        networks: list[dict[str, Any]] = engine.api.networks(filters={"dangling": "true"})
    unused = [n["Name"] for n in networks if "nonstop.network" in (n.get("Labels") or {})]
    if unused:
        remedy = f"`docker network rm {' '.join(unused)}` if no app is going to use them"
        yield Finding(
            where, f"networks of ours that nobody uses: {', '.join(unused)}", remedy=remedy
        )


def _described(engine: Engine, app: App) -> Iterator[Finding]:
    ensure_described_well(engine, app, lambda _: MASK)
    yield Finding(app.name, "is described well")


def _app(engine: Engine, app: App) -> Iterator[Finding]:
    yield from _described(engine, app)
    if to_create(engine, app.proxy):
        return
    look = ensure_site_loads(Nginx(engine, app.proxy), app)
    ensure_room(engine, app, look.free, pulls=app.pull_policy != "never")
    yield Finding(app.name, "nginx takes its site")
    site = render_site(app, 0, NOWHERE[: app.replicas], look.version).text
    if look.version >= KEEPS and "keepalive_min_timeout" not in site:
        yield Finding(
            app.name,
            f"{app.proxy.template} has no keepalive_min_timeout, so a reload may reset clients",
            "warning",
            "add `keepalive_min_timeout 5s;` to its server block",
        )
    if app.restart == "no" or app.restart.startswith("on-failure"):
        remedy = "set `restart: unless-stopped`"
        yield Finding(app.name, f"restart: {app.restart}: a reboot ends it", "warning", remedy)
    seen = observe.fn(app.name, app.proxy)
    former = [
        one
        for one in running_proxies(engine, seen.releases)
        if one.container != app.proxy.container
    ]
    for one in (seen, *(observe.fn(app.name, proxy) for proxy in former)):
        if one.holder:
            yield Finding(app.name, f"is being changed by {one.holder}")
            continue
        remedy, recovery = f"`nonstop recover {app.name}`", plan_recovery(one)
        if recovery.connect:
            what = f"the proxy {one.proxy} is not on network {recovery.connect} any more, so that "
            what += f"visitors do not reach release {recovery.live}"
            yield Finding(app.name, what, "problem", remedy)
        for line in recovery_lines(recovery.model_copy(update={"connect": ""})):
            yield Finding(app.name, f"a run died: {line}", "warning", remedy)
    for name in seen.strangers:
        yield Finding(
            app.name,
            f"container {name} is named like a replica and is not ours",
            "warning",
            f"`docker rename {name} {name}-other`, before a release gets its number",
        )


def _left_over(engine: Engine, apps: Collection[App]) -> Iterator[Finding]:
    """Containers of apps that are not described any more, and proxies of ours without any app."""
    used = {app.proxy.container for app in apps}
    for name in engine.apps():
        releases = engine.releases(name)
        used |= {release.settings.proxy.container for release in releases}
        if name in {app.name for app in apps} or not releases:
            continue
        names = " ".join(replica.name for release in releases for replica in release.replicas)
        proxy = releases[-1].settings.proxy
        site = ""
        if engine.runs(proxy.container):
            path = Nginx(engine, proxy).path(name)
            site = f", then `docker exec {proxy.container} rm {path}` and `docker kill -s HUP "
            site += f"{proxy.container}`"
        yield Finding(
            name,
            f"is not described in the inventory, and has {len(names.split())} containers",
            remedy=f"describe it again, or, once nobody asks for it: `docker rm -f {names}`{site}",
        )
    with engine_words("list containers"):
        listed = engine.api.containers(all=True, filters={"label": "nonstop.proxy"})
    for where in sorted({entry["Labels"]["nonstop.proxy"] for entry in listed} - used):
        remedy = f"`docker rm -f {where}`, and its volume {where}-sites"
        yield Finding(where, "is a proxy of ours that no app is behind", remedy=remedy)
