"""What registries say, each in the format that it documents: pushed images, or why there is none.

A delivery is read after its sender has proven itself. What does not name an image is no error:
senders tell of much else, and some repeat for ever what they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from flows.pushes.push import DIGEST, TAG, Push, name, split
from flows.pushes.signatures import Delivery
from tasks.bluegreen.units import Frozen

MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)


class Said(Frozen):
    """What a delivery says."""

    pushes: tuple[Push, ...] = ()
    why: str = ""
    """Why there is no push in it."""


def nothing(why: str) -> Said:
    """A delivery without a push."""
    return Said(why=why)


def docker_hub(delivery: Delivery, payload: Any) -> Said:
    """Docker Hub tells repository, tag and time, no digest."""
    tag, repository = text(payload, "push_data", "tag"), text(payload, "repository", "repo_name")
    if not repository or not TAG.fullmatch(tag):
        return nothing("It names no repository and tag that were pushed.")
    pushed_at = moment(at(payload, "push_data", "pushed_at"))
    return _one(Push(name=name(repository), tags=(tag,), at=pushed_at, id=delivery.digest))


def harbor(delivery: Delivery, payload: Any) -> Said:
    """Harbor tells in its own format, or in that of CloudEvents, of artifacts that were pushed."""
    if text(payload, "type") not in ("PUSH_ARTIFACT", "harbor.artifact.pushed"):
        return nothing("Only the event PUSH_ARTIFACT (Artifact pushed) deploys.")
    data = at(payload, "event_data") or at(payload, "data")
    when = moment(at(payload, "occur_at")) or moment(at(payload, "time"))
    pushes = []
    for number, resource in enumerate(items(data, "resources")):
        repository, _, _ = split(text(resource, "resource_url"))
        tag, digest = text(resource, "tag"), text(resource, "digest")
        if repository and TAG.fullmatch(tag):
            pushes.append(
                Push(
                    name=name(repository),
                    tags=(tag,),
                    digest=checked(digest),
                    at=when,
                    id=f"{delivery.digest}-{number}",
                )
            )
    return Said(pushes=tuple(pushes), why="" if pushes else "No artifact in it has a tag.")


def distribution(delivery: Delivery, payload: Any) -> Said:
    """The open-source registry tells of every layer and pull too; a tagged manifest is a push."""
    pushes = []
    for event in items(payload, "events"):
        target = at(event, "target")
        tag, repository = text(target, "tag"), text(target, "repository")
        host = text(event, "request", "host")
        pushed = text(event, "action") == "push" and text(target, "mediaType") in MANIFESTS
        if pushed and host and repository and TAG.fullmatch(tag):
            pushes.append(
                Push(
                    name=name(f"{host}/{repository}"),
                    tags=(tag,),
                    digest=checked(text(target, "digest")),
                    at=moment(at(event, "timestamp")),
                    id=text(event, "id")[:100] or delivery.digest,
                )
            )
    return Said(pushes=tuple(pushes), why="" if pushes else "No event in it pushes a tag.")


def quay(delivery: Delivery, payload: Any) -> Said:
    """Quay tells repository and tags; nothing tells two pushes of one tag from each other."""
    del delivery
    tags = at(payload, "updated_tags")
    listed = list(tags) if isinstance(tags, list | dict) else []  # once a mapping of tags to images
    known = tuple(tag for tag in listed if isinstance(tag, str) and TAG.fullmatch(tag))
    repository = text(payload, "docker_url")
    if not repository or not known:
        return nothing("It names no repository and tags that were pushed.")
    return _one(Push(name=name(repository), tags=known))


def generic(delivery: Delivery, payload: Any) -> Said:
    """Any CI tells `image`, and if it likes `digest` and the time `at`."""
    repository, tag, digest = split(text(payload, "image"))
    if not repository or not TAG.fullmatch(tag):
        return nothing("It has no `image` with a tag, like registry.example.com/shop:1.5.")
    return _one(
        Push(
            name=name(repository),
            tags=(tag,),
            digest=checked(digest or text(payload, "digest")),
            at=moment(at(payload, "at")) or moment(float(delivery.header("webhook-timestamp"))),
            id=delivery.header("webhook-id")[:100],
        )
    )


def _one(push: Push) -> Said:
    return Said(pushes=(push,))


def at(payload: Any, *path: str) -> Any:
    """What is there in nested mappings; None without it."""
    for key in path:
        if not isinstance(payload, Mapping):
            return None
        payload = payload.get(key)
    return payload


def text(payload: Any, *path: str) -> str:
    """The text there; empty without one."""
    found = at(payload, *path)
    return found if isinstance(found, str) else ""


def items(payload: Any, *path: str) -> Iterator[Any]:
    """The members of the list there; none without one."""
    found = at(payload, *path)
    yield from found if isinstance(found, list) else ()


def checked(digest: str) -> str | None:
    """The digest, if it is one."""
    return digest if DIGEST.fullmatch(digest) else None


def moment(value: Any) -> datetime | None:
    """A time as seconds since 1970, in ISO 8601 or as GitLab writes it; None for anything else.

    Some senders fill a time that they don't know with one long ago: that is none, too.
    """
    try:
        if isinstance(value, int | float):
            found = datetime.fromtimestamp(value, UTC)
        elif isinstance(value, str) and len(value) < 64:
            found = datetime.fromisoformat(value.strip().replace(" UTC", "+00:00"))
        else:
            return None
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return found.astimezone(UTC) if found.year > 1999 else None
    except (ValueError, OverflowError, OSError):
        return None
