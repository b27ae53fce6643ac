"""Images: pulled, pinned by id, and removed again where nonstop pulled them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Queue
from typing import Any

import requests
from docker.errors import APIError, DockerException, NotFound

from tasks.bluegreen.app import IMAGE, App
from tasks.bluegreen.containers import Engine, engine_words, words
from tasks.bluegreen.errors import (
    BadInput,
    EngineHiccup,
    ImageUnavailable,
    RegistryAway,
    Unavailable,
)
from tasks.bluegreen.model import Release

SILENCE = 5  # times the limit of one call: registries and disks are slower than the engine
TELL = 10.0  # seconds between two lines of progress
MARGIN = 256 << 20  # bytes that a deploy leaves free, whatever it pulls
REFUSED = re.compile(
    "manifest|unauthorized|no basic auth|denied|not found|HTTP 40[134]", re.IGNORECASE
)
PULLED: set[str] = set()  # ids of the images that this run has pulled, in whatever step


def pin(engine: Engine, app: App, say: Callable[[str], None]) -> str:
    """The id of the image to deploy, pulled first when the App's policy says so.

    Credentials are those of the user's Docker configuration.

    Raises:
        ImageUnavailable: in the registry's words.
        RegistryAway: it did not answer.
    """
    here = _image_id(engine, app.image)
    if app.pull_policy == "always" or (app.pull_policy == "missing" and here is None):
        _pull(engine, app.name, app.image, here is not None, say)
        here = _image_id(engine, app.image)
        PULLED.update([here] if here else [])
    if here is None:
        raise ImageUnavailable(
            f"{app.name}: image {app.image} is not on this host and pull_policy is "
            f"{app.pull_policy}: pull or build it first. Nothing was touched."
        )
    return here


def ensure_proxy_image(engine: Engine, app: App, say: Callable[[str], None]) -> None:
    """The image from which the proxy is created is on this host; it is pulled if it was not.

    Raises:
        BadInput: that is no image reference.
        ImageUnavailable: in the registry's words.
        RegistryAway: it did not answer.
    """
    image = app.proxy.image or ""
    if not IMAGE.fullmatch(image):
        raise BadInput(f"{app.name}: proxy.image: {image!r} is not an image, like nginx:1.28.")
    if _image_id(engine, image) is None:
        _pull(engine, app.name, image, False, say)


def was_pulled(engine: Engine, app: App, image_id: str) -> bool:
    """Whether this run, or the one that made a release of the same image, has pulled it.

    Where that is not known, as after a run that died, it is the user's.
    """
    if app.pull_policy == "never":
        return False
    return image_id in PULLED or any(
        release.pulled and release.pinned == image_id for release in engine.releases(app.name)
    )


def ensure_room(engine: Engine, app: App, free: int, *, pulls: bool) -> None:
    """The disk has room for green's containers and, where it is pulled, for its image.

    A registry tells no size before the pull; the image's own last one, or that of the newest
    release, is taken for it.

    Args:
        engine: where.
        app: what is deployed.
        free: bytes that are free where the engine keeps containers and images.
        pulls: whether the image may be pulled.

    Raises:
        Unavailable: there is less.
    """
    size = 0
    if pulls:
        releases = engine.releases(app.name)
        for image in (app.image, releases[-1].pinned if releases else ""):
            size = size or (_image(engine, image).get("Size", 0) if image else 0)
    if free < MARGIN + size:
        raise Unavailable(
            f"{app.name}: {free >> 20} MiB are free on the engine's disk, and a deploy needs about "
            f"{(MARGIN + size) >> 20} MiB: look at `docker system df`, free some with `docker "
            "image prune`, then deploy again. Nothing was touched."
        )


def resolve(engine: Engine, app: App, pinned: str, say: Callable[[str], None]) -> str:
    """What a deploy would run now: an image's id, or a digest that the host's `pinned` is not.

    A registry that answers is believed without a pull.

    Args:
        engine: where.
        app: whose image.
        pinned: id of the image that serves.
        say: tells of a pull.

    Raises:
        ImageUnavailable: in the registry's words.
        RegistryAway: it did not answer.
    """
    _, _, offered = app.image.partition("@")
    if app.pull_policy == "always":
        offered = offered or _offered(engine, app.image)
    if not offered:
        return pin(engine, app, say)
    return pinned if offered in _digests(engine, pinned) else offered


def _offered(engine: Engine, image: str) -> str:
    """The digest that the registry has under this tag; empty when it does not say."""
    try:
        return str(engine.api.inspect_distribution(image)["Descriptor"]["digest"])
    except (DockerException, requests.RequestException, OSError, KeyError):
        return ""


def _digests(engine: Engine, image_id: str) -> set[str]:
    """Of an image's manifests, in whatever repositories it was found."""
    found = _image(engine, image_id).get("RepoDigests") or []
    return {entry.partition("@")[2] for entry in found}


def _image_id(engine: Engine, image: str) -> str | None:
    return _image(engine, image).get("Id")


def _image(engine: Engine, image: str) -> dict[str, Any]:
    with engine_words(f"look for image {image}"):
        try:
            found: dict[str, Any] = engine.api.inspect_image(image)
        except NotFound:
            return {}
        return found


def _pull(engine: Engine, app: str, image: str, here: bool, say: Callable[[str], None]) -> None:
    name, _, digest = image.partition("@")
    last = name.rsplit("/", 1)[-1]
    repository, reference = (
        (name, digest) if digest else (name.rsplit(":", 1) if ":" in last else (name, "latest"))
    )
    say(f"pulling {image}")
    began = told = time.monotonic()
    layers: dict[str, tuple[int, int]] = {}
    try:
        for line in _pulled(engine, repository, reference):
            if "error" in line:
                raise APIError(line["error"], explanation=line["error"])
            if line.get("status") == "Downloading" and (part := line.get("progressDetail")):
                layers[line["id"]] = (part["current"], part.get("total", part["current"]))
            if time.monotonic() - told >= TELL:
                told = time.monotonic()
                so_far, total = (sum(part[i] for part in layers.values()) >> 20 for i in (0, 1))
                say(
                    f"pulling {image} for {told - began:.0f} s: {so_far} of {total} MiB of "
                    "what is known"
                )
    except APIError as error:
        why = words(error)
        if "no space left" in why:
            raise Unavailable(
                f"{app}: the engine's disk was full before {image} was pulled ({why}): "
                "free some with `docker image prune`, then deploy again. Nothing was touched."
            ) from error
        broke_off = error.response is None  # told in the stream, after a good start
        away = not REFUSED.search(why) and (broke_off or error.status_code >= 500)
        hint = (
            "is the registry reachable, and `docker login` done on this host?"
            if away
            else "check its name and tag, and `docker login` on this host."
        )
        if here:
            hint += " The image is on this host: with `pull_policy: missing` it is taken as is."
        kind = RegistryAway if away else ImageUnavailable
        raise kind(
            f"{app}: image {image} could not be pulled ({why}): {hint} Nothing was touched."
        ) from error
    except TimeoutError as error:
        raise RegistryAway(
            f"{app}: image {image} could not be pulled ({error}): is the registry "
            "reachable? Nothing was touched."
        ) from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise EngineHiccup(f"Pulling {image} broke off: {words(error)}.") from error


def _pulled(engine: Engine, repository: str, reference: str) -> Iterator[dict[str, Any]]:
    """What the engine says while it pulls, and nothing from time to time while it is silent.

    The client itself would wait for the next line for ever.

    Raises:
        TimeoutError: it said nothing for SILENCE calls' time.
    """
    heard: Queue[dict[str, Any] | Exception | None] = Queue()

    def listen() -> None:
        try:
            for line in engine.api.pull(repository, tag=reference, stream=True, decode=True):
                heard.put(line)
            heard.put(None)
        except Exception as error:  # noqa: BLE001  # raised again where it is heard
            heard.put(error)

    threading.Thread(target=listen, daemon=True).start()
    limit = SILENCE * engine.api.timeout
    last = time.monotonic()
    while True:
        try:
            line = heard.get(timeout=min(limit, TELL))
        except Empty:
            if time.monotonic() - last >= limit:
                raise TimeoutError(f"nothing was heard of it for {limit:g} s") from None
            yield {}
            continue
        last = time.monotonic()
        if line is None:
            return
        if isinstance(line, Exception):
            raise line
        yield line


def remove_image(engine: Engine, release: Release) -> None:
    """Removes a release's image that nothing uses and that nonstop pulled.

    Any other is the user's to remove: there may be no other copy. A release made before it was
    noted who pulled has one that a registry knows.
    """
    if release.pulled is False or release.settings.pull_policy == "never":
        return
    with engine_words(f"remove image {release.pinned}"):
        try:
            if release.pulled or _digests(engine, release.pinned):
                engine.api.remove_image(release.pinned)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # in use by another container, or tagged twice
                raise
