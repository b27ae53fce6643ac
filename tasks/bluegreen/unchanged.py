"""What a deploy would change: the live release beside what is wanted. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.bluegreen.app import App
from tasks.bluegreen.model import Observed, Release

# Fields that say how and when to deploy, not what: the image is compared by its id.
# A proxy that is there stays as it was created.
HOW: Any = dict.fromkeys(("image", "pull_policy", "parallelism", "window", "deploy_on_push"), True)
HOW["proxy"] = {"image", "publish"}
SHOWN = (bool, int, float)  # a text may be anything, so only its field is named


def differences(
    app: App,
    seen: Observed,
    wanted: Sequence[Mapping[str, str]],
    have: Sequence[Mapping[str, str]],
    generation: str,
) -> tuple[str, ...]:
    """Why the live release is not what is wanted, whatever its image; none: it is.

    Args:
        app: what is wanted.
        seen: what Docker and nginx show.
        wanted: the environment that each replica would get, were it of the live release.
        have: the environment that each replica of the live release has.
        generation: of the site that the live release would get.
    """
    live = seen.release(seen.live.number) if seen.live else None
    if live is None or seen.live is None:
        return ("no release serves",)
    found = list(settings(live.settings, app))
    if live.running < app.replicas or not live.complete:
        found.append(f"release {live.number} has {live.running} of {app.replicas} replicas running")
    found += [
        f"{replica.name} is {replica.health}"
        for replica in live.replicas
        if replica.health not in ("", "healthy")
    ]
    names = {
        name
        for one, other in zip(wanted, have, strict=False)
        for name in one.keys() | other.keys()
        if one.get(name) != other.get(name)
    }
    found += [f"environment {name}" for name in sorted(names)]
    if seen.live.generation != generation or not seen.loaded:
        found.append("the site in nginx")
    return tuple(found)


def settings(before: App, after: App) -> tuple[str, ...]:
    """The settings that differ, as `health.checks: 2 -> 3`; of texts only the field's name."""
    one, other = (app.model_dump(exclude=HOW) for app in (before, after))
    return tuple(_differing(one, other, ""))


def changes(before: Release | None, app: App, pinned: str) -> tuple[str, ...]:
    """What a deploy changes, line by line.

    Args:
        before: the release that it replaces; None: a first one.
        app: what it deploys.
        pinned: id of the image that it deploys.
    """
    if before is None:
        return (f"image: {app.image}", f"id: {pinned[:19]}", f"replicas: {app.replicas}")
    image = f"{before.image} -> {app.image}" if before.image != app.image else app.image
    same = before.pinned == pinned
    identity = f"{pinned[:19]}, as before" if same else f"{before.pinned[:19]} -> {pinned[:19]}"
    return (f"image: {image}", f"id: {identity}", *settings(before.settings, app))


def _differing(one: Any, other: Any, path: str) -> Iterator[str]:
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            below = f"{path}.{name}" if path else name
            yield from _differing(one.get(name), other.get(name), below)
    elif all(value is None or isinstance(value, SHOWN) for value in (one, other)):
        yield f"{path}: {_shown(one)} -> {_shown(other)}"
    else:
        yield path


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
