"""What the proxy stands on: the network between it and the replicas, and a proxy of our own."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import Any

from docker.errors import APIError
from docker.types import IPAMConfig, IPAMPool

from tasks.bluegreen.app import App, Proxy
from tasks.bluegreen.containers import Engine, engine_words, words
from tasks.bluegreen.errors import EngineHiccup, Unavailable
from tasks.bluegreen.labels import config
from tasks.bluegreen.nginx import MAIN, SITES, Nginx
from tasks.bluegreen.site import render_main

# Private ranges that hosts and clouds seldom use; the first that is free on the engine is taken.
POOLS = [f"10.{second}.0.0/20" for second in range(213, 229)]
MOMENT = 1.0  # seconds in which a network that another run is creating can be seen
STARTUP = 10.0  # seconds until a new proxy has to answer
ROTATED = {"max-size": "20m", "max-file": "5"}  # options of json-file, which else grows for ever


def dynamic_part(subnet: str) -> str:
    """The quarter of a new network that Docker gives away by itself."""
    return subnet.replace("/20", "/22")


@contextmanager
def provided(engine: Engine, app: App) -> Iterator[Nginx]:
    """The proxy runs, and shares a network with fixed addresses with the replicas.

    What was made for that goes again if what is within fails, unless somebody else uses it by then.

    Args:
        engine: where.
        app: whose `proxy`.

    Raises:
        Unavailable: there is no proxy and none may be created, or its port is taken.
    """
    proxy = app.proxy
    with ExitStack() as made:
        if to_create(engine, proxy):
            _network(engine, proxy, made)
            if not _started_by_another_run(engine, proxy, named=False):
                _create(engine, proxy, made)
        nginx = Nginx(engine, proxy)
        networks = nginx.networks()
        if networks is None:
            _network(engine, proxy, made)
        elif proxy.network not in networks:
            _network(engine, proxy, made)
            connect(engine, nginx, proxy.network)
            made.callback(_disconnect, engine, nginx.id, proxy.network)
            nginx = Nginx(engine, proxy)
        yield nginx
        made.pop_all()


def moves_ports(nginx: Nginx, network: str) -> str:
    """The network through which the container's ports are published, if that one would take over.

    The ports are closed for 80 ms then, as measured with 20.10. Empty: they stay as they are.
    """
    names = nginx.networks() or ()
    ports = (nginx.seen["HostConfig"]["PortBindings"] or {}) if names else {}
    first = min(names, default="")
    return first if ports and network not in names and network < first else ""


def connect(engine: Engine, nginx: Nginx, network: str) -> None:
    """The proxy is on that network, too."""
    with engine_words(f"connect {nginx.proxy.container} to network {network}"):
        engine.api.connect_container_to_network(nginx.id, network)


def to_create(engine: Engine, proxy: Proxy) -> bool:
    """Whether the proxy is for nonstop to create, and nobody has started it yet."""
    if proxy.image is None:
        return False
    seen = engine.inspect(proxy.container)
    return seen is None or _never_started(seen)


def published(engine: Engine, proxy: Proxy) -> set[int]:
    """The container's TCP ports that visitors reach from outside, or will once it is created."""
    if to_create(engine, proxy):
        return {_binding(entry)[0] for entry in proxy.publish}
    seen = engine.inspect(proxy.container)
    ports = (seen["NetworkSettings"]["Ports"] or {}) if seen else {}
    return {
        int(port.removesuffix("/tcp")) for port in ports if port.endswith("/tcp") and ports[port]
    }


def ranges(engine: Engine, proxy: Proxy) -> tuple[str, str]:
    """The network's subnet, and the part of it that Docker gives away by itself.

    Of a network that is not there yet: what it is most likely to get.

    Raises:
        Unavailable: it has no room for fixed addresses.
    """
    network = engine.network(proxy.network)
    if network is None:
        return POOLS[0], dynamic_part(POOLS[0])
    for pool in network["IPAM"].get("Config") or []:
        if ":" not in pool["Subnet"] and pool.get("IPRange"):
            return pool["Subnet"], pool["IPRange"]
    raise Unavailable(
        f"Network {proxy.network} has no room for fixed addresses: let nonstop create one of "
        "another name (proxy.network), or create it with `docker network create --subnet "
        "10.20.0.0/20 --ip-range 10.20.0.0/22 NAME`."
    )


def _network(engine: Engine, proxy: Proxy, made: ExitStack) -> None:
    """The network exists; a new one gets a subnet that is free.

    The engine may let two networks have one name, but not one subnet: who comes second by a moment
    finds name or subnet taken, and soon the network there.
    """
    if _exists(engine, proxy.network):
        return
    for subnet in POOLS:
        pool = IPAMPool(subnet=subnet, iprange=dynamic_part(subnet))
        try:
            with engine_words(f"create network {proxy.network}"):
                engine.api.create_network(
                    proxy.network,
                    driver="bridge",
                    ipam=IPAMConfig(pool_configs=[pool]),
                    labels={"nonstop.network": proxy.network},
                    check_duplicate=True,
                )
                made.callback(_remove_network, engine, proxy.network)
                return
        except EngineHiccup as error:
            if not any(said in str(error).lower() for said in ("overlap", "already exists")):
                raise
            if _exists(engine, proxy.network, within=MOMENT):
                return
    raise Unavailable(
        f"No free subnet for network {proxy.network}: create it yourself with "
        "`docker network create --subnet SUBNET --ip-range PART_OF_IT "
        f"{proxy.network}`."
    )


def _exists(engine: Engine, network: str, within: float = 0.0) -> bool:
    deadline = time.monotonic() + within
    while True:
        with engine_words(f"list the network {network}"):
            if any(n["Name"] == network for n in engine.api.networks(names=[network])):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def _never_started(seen: dict[str, Any]) -> bool:
    """A proxy of ours that was created and not started: its maker is at it, or died."""
    ours = "nonstop.proxy" in (config(seen, "Labels") or {})
    return bool(ours and seen["State"]["Status"] == "created")


def _started_by_another_run(engine: Engine, proxy: Proxy, *, named: bool) -> bool:
    """Whether another run that is creating the proxy starts it; what a dead one left is removed.

    Args:
        engine: where.
        proxy: which.
        named: whether its name is taken, which it is a moment before it can be seen.

    Raises:
        Unavailable: the other's proxy does not answer.
    """
    deadline = time.monotonic() + STARTUP
    while (seen := engine.inspect(proxy.container)) is None or _never_started(seen):
        if seen is None and not named:
            return False
        if time.monotonic() > deadline:
            if seen is not None:
                engine.remove(seen["Id"])
            return False
        time.sleep(0.1)
    _answers(engine, proxy)
    return True


def _create(engine: Engine, proxy: Proxy, made: ExitStack) -> None:
    directory = str(PurePosixPath(MAIN).parent)
    ports = [_binding(entry) for entry in proxy.publish]
    api: Any = engine.api
    volume = f"{proxy.container}-sites"
    there = api.volumes(filters={"name": volume})["Volumes"] or []
    kept = any(v["Name"] == volume for v in there)  # of a proxy that somebody removed
    with engine_words("describe itself"):
        driver = str(api.info().get("LoggingDriver"))
    try:
        container = api.create_container(
            proxy.image,
            name=proxy.container,
            entrypoint=["nginx", "-c", MAIN, "-g", "daemon off;"],
            command=[],
            stop_signal="SIGQUIT",
            ports=[inside for inside, _ in ports],
            labels={"nonstop.proxy": proxy.container},
            host_config=api.create_host_config(
                binds=[f"{volume}:{directory}"],
                port_bindings=dict(ports),
                network_mode=proxy.network,
                restart_policy={"Name": "always"},
                log_config=log_config(driver),
            ),
        )["Id"]
    except APIError as error:
        if error.status_code == 409 and _started_by_another_run(engine, proxy, named=True):
            return
        raise Unavailable(
            f"The proxy {proxy.container} cannot be created from {proxy.image}: {words(error)}."
        ) from error
    made.callback(_remove_unused, engine, proxy, container, None if kept else volume)
    with engine_words(f"configure {proxy.container}"):
        api.put_archive(container, directory, _archive(proxy))
    try:
        _start(engine, container)
    except APIError as error:
        raise Unavailable(
            f"The proxy {proxy.container} cannot start, perhaps as a port of "
            f"{', '.join(proxy.publish)} is taken: free it or change proxy.publish "
            f"({words(error)})."
        ) from error
    _answers(engine, proxy)


def log_config(driver: str) -> dict[str, Any] | None:
    """How a new proxy's log, of a line for each request, is kept from filling the disk.

    Args:
        driver: the engine's default; json-file stays one, for whoever collects such files.

    Returns:
        Driver and options as the engine calls them; None: its default.
    """
    return {"Type": driver, "Config": ROTATED} if driver == "json-file" else None


def _start(engine: Engine, container: str) -> None:
    deadline = time.monotonic() + MOMENT
    while True:
        try:
            engine.api.start(container)
        except APIError as error:  # a second network of this name, until its subnet is refused
            if "ambiguous" not in words(error) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.1)


def _remove_unused(engine: Engine, proxy: Proxy, container: str, volume: str | None) -> None:
    seen = engine.inspect(container)
    if seen and seen["State"]["Running"] and Nginx(engine, proxy).used():
        return
    engine.remove(container)
    if volume is not None:
        with engine_words(f"remove volume {volume}"):
            engine.api.remove_volume(volume)


def _remove_network(engine: Engine, network: str) -> None:
    with engine_words(f"remove network {network}"):
        try:
            engine.api.remove_network(network)
        except APIError as error:
            if error.status_code != 403:  # another run's proxy or replica is on it
                raise


def _disconnect(engine: Engine, container: str, network: str) -> None:
    with engine_words(f"disconnect {container[:12]} from network {network}"):
        engine.api.disconnect_container_from_network(container, network)


def _answers(engine: Engine, proxy: Proxy) -> None:
    """Nginx is up in a container that was just started."""
    deadline = time.monotonic() + STARTUP
    while True:
        seen = engine.inspect(proxy.container)
        if seen is not None and seen["State"]["Status"] == "running" and not seen["RestartCount"]:
            nginx = Nginx(engine, proxy)
            if nginx.accepting():
                return
        if time.monotonic() > deadline or (seen and seen["RestartCount"]):
            log = engine.log_since(proxy.container, 1)[-1000:] if seen else ""
            raise Unavailable(f"The proxy {proxy.container} did not start from {proxy.image}.", log)
        time.sleep(0.1)


def _binding(entry: str) -> tuple[int, tuple[str, int] | int]:
    *address, host, inside = entry.split(":")
    return int(inside), (address[0], int(host)) if address else int(host)


def _archive(proxy: Proxy) -> bytes:
    """The volume's first content: the main configuration and an empty directory of sites."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        sites = tarfile.TarInfo(PurePosixPath(SITES).name)
        sites.type, sites.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(sites)
        text = render_main(SITES, proxy.listen).encode()
        main = tarfile.TarInfo(PurePosixPath(MAIN).name)
        main.size, main.mode = len(text), 0o644
        tar.addfile(main, io.BytesIO(text))
    return buffer.getvalue()
