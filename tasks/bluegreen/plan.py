"""Decisions: pure functions from what was seen to a printable value."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import IPv4Network

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import NothingKept, Refused, Unavailable
from tasks.bluegreen.model import Observed, Plan, Release, Retirement


def plan_deploy(app: App, seen: Observed, holder: str = "", run: str = "") -> Plan:
    """The next release of `app` beside whatever is live.

    Args:
        app: what is wanted.
        seen: what Docker and nginx show, when nothing is left of dead runs.
        holder: the run that will act on it, as the holder of the app's lock.
        run: its id.

    Raises:
        Unavailable: the network has too few free addresses.
        Refused: a container of somebody else's has the name of one of green's.
    """
    return _plan(app, seen, holder, run)


def plan_rollback(seen: Observed, to: int | None = None, holder: str = "", run: str = "") -> Plan:
    """An earlier release's image, environment and settings under a new number.

    Args:
        seen: what Docker and nginx show, when nothing is left of dead runs.
        to: the release to return to; by default the newest kept one before the live one.
        holder: the run that will act on it, as the holder of the app's lock.
        run: its id.

    Raises:
        NothingKept: no such release, or not all of its containers are there.
        Refused: a container of somebody else's has the name of one of green's.
    """
    if seen.live is None:
        raise NothingKept(
            f"{seen.app} has no live release, so there is nothing to roll back from: "
            f"deploy it with `nonstop deploy {seen.app}`."
        )
    kept = [
        release for release in seen.behind if release.number < seen.live.number and release.complete
    ]
    numbers = ", ".join(str(release.number) for release in kept) or "none"
    wanted = [release for release in kept if to in (None, release.number)]
    if not wanted:
        raise NothingKept(
            f"{seen.app} has no kept release{'' if to is None else f' {to}'} to roll back to "
            f"(live: {seen.live.number}, kept: {numbers}): deploy an earlier image with "
            f"`nonstop deploy {seen.app} --image IMAGE`."
        )
    return _plan(seen.settings(wanted[-1]), seen, holder, run, wanted[-1])


def _plan(app: App, seen: Observed, holder: str, run: str, source: Release | None = None) -> Plan:
    live = seen.live.number if seen.live else None
    highest = max([release.number for release in seen.releases] + [live or 0])
    green = highest + 1
    names = {f"{app.name}-{green}-{index}" for index in range(1, app.replicas + 1)}
    if clash := sorted(names & set(seen.strangers)):
        raise Refused(
            f"A container named {clash[0]} exists and is not ours: rename or remove it, then "
            "deploy again. Nothing was touched."
        )
    return Plan(
        app=app,
        green=green,
        blue=live,
        blue_generation=seen.live.generation if seen.live else None,
        origin=source.origin if source else green,
        source=source.number if source else None,
        pinned=source.pinned if source else None,
        addresses=tuple(free_addresses(seen, app.name, green, app.replicas)),
        nginx=seen.nginx,
        run=run,
        holder=holder,
        previous_site=seen.loaded_site,
    )


def free_addresses(seen: Observed, app: str, green: int, count: int) -> list[str]:
    """Addresses outside the part of the network that Docker gives away by itself.

    The search starts at a place that depends on app and release, so that an address is not given
    to another release while somebody may still send requests to its last owner.
    """
    free: list[str] = []
    used = set(seen.taken)
    for address in _fixed_range(seen, f"{app}-{green}"):
        if len(free) == count:
            break
        if address not in used:
            free.append(address)
    if len(free) < count:
        raise Unavailable(
            f"The network {seen.subnet} has {len(free)} free addresses and {app} needs {count}: "
            "remove releases that are no longer needed, or use another `proxy.network`."
        )
    return free


def _fixed_range(seen: Observed, seed: str) -> Iterator[str]:
    subnet, dynamic = IPv4Network(seen.subnet), IPv4Network(seen.dynamic)
    size = subnet.num_addresses
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    for step in range(size):
        offset = (start + step) % size
        address = subnet[offset]
        if 1 < offset < size - 1 and address not in dynamic:
            yield str(address)


def plan_retirement(seen: Observed, keep: int) -> Retirement:
    """Which releases older than the live one are stopped, stay for a rollback, or go.

    What is live is in none of the three, nor is anything newer.
    """
    if seen.live is None:
        return Retirement(stop=(), keep=(), remove=())
    live = seen.live.number
    older = [r for r in reversed(seen.behind) if r.number < live and r.number not in seen.others]
    kept = [release for release in older if release.complete][:keep]
    gone = [release.number for release in older if release not in kept]
    return Retirement(
        stop=tuple(release.number for release in older if not release.standing),
        keep=tuple(release.number for release in kept),
        remove=tuple(gone),
    )


def role(seen: Observed, release: Release) -> str:
    """What a release is, in the words of the design."""
    if release.number in seen.others:
        return f"live behind {release.settings.proxy.container}"
    if seen.live and release.number == seen.live.number:
        return "live"
    if any(replica.run and replica.run in seen.holder for replica in release.replicas):
        return "green"
    if seen.live is None:
        return "not live"
    if release.number > seen.live.number:
        return "abandoned"
    return "warm" if release.running else "kept"
