"""What GitHub and GitLab say: images that were pushed, and work whose end means that one was.

Such work tells no digest, and what its tag means is known when the run begins: so its moment is its
end. By its beginning a short job that began later would pass for newer than what a long one built.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flows.pushes.payloads import Said, at, checked, moment, nothing, text
from flows.pushes.push import TAG, Name, Push, name, split
from flows.pushes.signatures import Delivery

OWN_RUNS = ("push", "release", "workflow_dispatch", "schedule", "repository_dispatch", "create")
OWN_PIPELINES = ("push", "web", "schedule", "api", "trigger", "pipeline", "chat")


def github(delivery: Delivery, payload: Any) -> Said:
    """GitHub: a package tells its digest; a release, run or deployment means ghcr.io/OWNER/REPO."""
    event = delivery.header("x-github-event")
    readers = {
        "package": _package,
        "registry_package": _package,
        "release": _release,
        "workflow_run": _workflow_run,
        "deployment": _deployment,
    }
    if event not in readers:
        return nothing(f"Only these events deploy: {', '.join(readers)}.")
    push = readers[event](payload)
    if isinstance(push, str):
        return nothing(push)
    return Said(pushes=(push.model_copy(update={"id": delivery.digest}),))


def gitlab(delivery: Delivery, payload: Any) -> Said:
    """GitLab: a pipeline that succeeded, or a release, means an image of the project's registry.

    A tag is pushed before its image is built, so that event is none to deploy on. `released_at` may
    be any day that somebody gave.
    """
    kind, path = text(payload, "object_kind"), text(payload, "project", "path_with_namespace")
    pipeline = at(payload, "object_attributes")
    if not path:
        return nothing("It names no project.")
    tags: tuple[str, ...]
    if kind == "release" and text(payload, "action") == "create":
        tags, when = (text(payload, "tag"),), moment(at(payload, "created_at"))
    elif kind == "pipeline" and text(pipeline, "status") == "success":
        if text(pipeline, "source") not in OWN_PIPELINES:
            return nothing("Pipelines of merge requests don't deploy.")
        ref, when = text(pipeline, "ref"), moment(at(pipeline, "finished_at"))
        tags = ref if at(pipeline, "tag") is True else slug(ref), text(pipeline, "sha")[:8]
    else:
        return nothing("Only a release that is created and a pipeline that succeeds deploy.")
    known = tuple(tag for tag in tags if TAG.fullmatch(tag))
    if not known:
        return nothing("It names nothing that can be the tag of an image.")
    host = text(payload, "project", "web_url").removeprefix("https://").partition("/")[0]
    registry = "registry.gitlab.com" if host == "gitlab.com" else ""  # others are not told
    where = Name(registry=registry, path=path.lower())
    return Said(
        pushes=(Push(name=where, tags=known, at=when, id=delivery.digest, below=True),),
    )


def slug(ref: str) -> str:
    """A branch as GitLab's CI_COMMIT_REF_SLUG has it."""
    return re.sub(r"[^a-z0-9]", "-", ref.lower())[:63].strip("-")


def _package(payload: Any) -> Push | str:
    package = at(payload, "package") or at(payload, "registry_package")
    version = at(package, "package_version")
    tag = text(version, "container_metadata", "tag", "name")
    repository, _, _ = split(text(version, "package_url"))
    if text(payload, "action") not in ("published", "updated"):
        return "Only a package that is published or updated deploys."
    if not repository or not TAG.fullmatch(tag):
        return "It is no container image with a tag."
    digest = text(version, "container_metadata", "tag", "digest")
    times = (at(version, "updated_at"), at(version, "created_at"), at(package, "updated_at"))
    return Push(
        name=name(repository),
        tags=(tag,),
        digest=checked(digest) or checked(text(version, "version")),
        at=next(filter(None, map(moment, times)), None),
    )


def _release(payload: Any) -> Push | str:
    if text(payload, "action") != "published":
        return "Only a release that is published deploys."
    when = moment(at(payload, "release", "published_at"))
    return _built(payload, (text(payload, "release", "tag_name"),), when)


def _workflow_run(payload: Any) -> Push | str:
    run = at(payload, "workflow_run")
    if text(payload, "action") != "completed" or text(run, "conclusion") != "success":
        return "Only a workflow run that succeeds deploys."
    own = text(run, "head_repository", "full_name") == text(payload, "repository", "full_name")
    if text(run, "event") not in OWN_RUNS or not own:
        return "Runs of pull requests and of forks don't deploy."
    sha = text(run, "head_sha")
    tags = (text(run, "head_branch").replace("/", "-"), f"sha-{sha[:7]}", sha)
    return _built(payload, tags if sha else tags[:1], moment(at(run, "updated_at")))


def _deployment(payload: Any) -> Push | str:
    """The image that the deployment's own payload names, else the one built from its ref."""
    deployment = at(payload, "deployment")
    if text(payload, "action") != "created":
        return "Only a deployment that is created deploys."
    when = moment(at(deployment, "created_at"))
    own = at(deployment, "payload")
    if isinstance(own, str):
        try:
            own = json.loads(own)
        except (ValueError, RecursionError):
            own = None
    repository, tag, digest = split(text(own, "image"))
    if repository and TAG.fullmatch(tag):
        return Push(name=name(repository), tags=(tag,), digest=checked(digest), at=when)
    return _built(payload, (text(deployment, "ref").replace("/", "-"),), when)


def _built(payload: Any, tags: tuple[str, ...], when: Any) -> Push | str:
    """An image of the repository's own, by the name that GitHub's registry gives it."""
    repository = text(payload, "repository", "full_name").lower()
    known = tuple(tag for tag in tags if TAG.fullmatch(tag))
    if not repository or not known:
        return "It names nothing that can be the tag of an image."
    return Push(name=Name(registry="ghcr.io", path=repository), tags=known, at=when, below=True)
