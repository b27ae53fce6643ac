"""A push: an image has a new content under a tag, says a sender; and the app that waits for it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

from pydantic import ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from tasks.bluegreen.app import IMAGE
from tasks.bluegreen.units import Frozen
from tasks.bluegreen.window import Window, is_open, next_opening

HUB = "docker.io"
HUB_NAMES = (HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Name(Frozen):
    """Where an image is: its registry and its path there, in one spelling.

    An empty registry stands for any but Docker Hub, of a sender that does not say it.
    """

    registry: str
    path: str


class Push(Frozen):
    """One image, pushed under one tag or more."""

    name: Name
    tags: tuple[str, ...]
    """In the order in which an app takes the first that it waits for."""
    digest: str | None = None
    at: datetime | None = None
    """When it was pushed, by the sender's own clock."""
    id: str | None = None
    """Its own name within what the sender has proven; None: two pushes may look the same."""
    below: bool = False
    """Whether it speaks for images below that path too, as a repository with several does."""


def _windows(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    """Windows that are written wrongly are none: the run says what is wrong."""
    try:
        return parse(value)
    except ValidationError:
        return ()


class Subscriber(Frozen):
    """What of an app decides whether, and when, a push is for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    image: str
    deploy_on_push: str | None = None
    window: Annotated[tuple[Window, ...], WrapValidator(_windows)] = ()
    deployment: UUID

    def opens(self) -> datetime | None:
        """When it may be deployed, if not now."""
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        return None if is_open(self.window, now) else _opening(self.window, now)

    def takes(self, push: Push) -> str | None:
        """The image to deploy when this push is one that the app waits for, else None.

        It has the repository as the app spells it, the pushed tag, and the digest if it is told.
        """
        repository, _, _ = split(self.image)
        if self.deploy_on_push is None or not _same(name(repository), push):
            return None
        for tag in push.tags:
            image = f"{repository}:{tag}" + (f"@{push.digest}" if push.digest else "")
            if fnmatchcase(tag, self.deploy_on_push) and IMAGE.fullmatch(image):
                return image
        return None

    def leaves_behind(self, image: str) -> bool:
        """Whether a push may deploy a newer image while this one stays what it is.

        So it is with a digest, and with a tag when a push may have its next number. A tag without a
        number, or that stands for all that pushes may have, is taken to move with them.
        """
        repository, tag, digest = split(image)
        if digest:
            return self.deploy_on_push is not None
        following = re.sub(r"\d+(?=\D*$)", lambda number: str(int(number[0]) + 1), tag)
        newer = Push(name=name(repository), tags=(following,))
        return following != tag and self.takes(newer) is not None


# A window that is far away takes a while to find, in which nobody else would be answered.
_opening = lru_cache(256)(next_opening)


def split(reference: str) -> tuple[str, str, str]:
    """Repository, tag and digest of an image reference; what it has not is empty."""
    rest, _, digest = reference.partition("@")
    last = rest.rsplit("/", 1)[-1]
    repository, tag = rest.rsplit(":", 1) if ":" in last else (rest, "")
    return repository, tag, digest


@lru_cache(4096)  # each push is held against every app
def name(repository: str) -> Name:
    """A repository in one spelling: `shop` and `docker.io/library/shop` are the same."""
    first, _, rest = repository.lower().partition("/")
    if rest and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, rest
    else:
        registry, path = HUB, repository.lower()
    if registry in HUB_NAMES:
        registry, path = HUB, path if "/" in path else f"library/{path}"
    return Name(registry=registry, path=path)


def _same(wanted: Name, push: Push) -> bool:
    told = push.name
    if told.registry != wanted.registry and (told.registry or wanted.registry == HUB):
        return False
    return wanted.path == told.path or (push.below and wanted.path.startswith(f"{told.path}/"))
