"""Deliveries of every sender, in the form that its documentation shows, signed as it signs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

DIGEST = "sha256:" + "5d" * 32
HOST = "registry.example.com"


@dataclass(frozen=True)
class Pushed:
    """What a delivery tells of."""

    path: str
    tag: str = "1.5"
    digest: str = DIGEST
    at: float = field(default_factory=time.time)
    took: float = 0
    """Seconds of the work that ended then."""

    @property
    def iso(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z")

    @property
    def began(self) -> Pushed:
        return replace(self, at=self.at - self.took)


@dataclass(frozen=True)
class Signed:
    """A request that a sender would make."""

    sender: str
    body: bytes
    headers: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)


def github(pushed: Pushed, secret: str, event: str = "registry_package") -> Signed:
    """A package on ghcr.io, or what happens in the repository that it is built from."""
    repository = {"id": 185882436, "full_name": pushed.path, "private": True}
    return github_event(GITHUB[event](pushed) | {"repository": repository}, secret, event)


def github_event(payload: dict[str, Any], secret: str, event: str) -> Signed:
    body = json.dumps(payload).encode()
    made = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-GitHub-Hook-ID": "292430182",
        "X-Hub-Signature-256": f"sha256={made}",
    }
    return Signed("github", body, headers)


def _package(pushed: Pushed) -> dict[str, Any]:
    return {
        "id": 10696,
        "name": pushed.path.rpartition("/")[2],
        "namespace": pushed.path.partition("/")[0],
        "ecosystem": "CONTAINER",
        "package_type": "CONTAINER",
        "updated_at": pushed.iso,
        "package_version": {
            "id": 57755791,
            "version": pushed.digest,
            "name": pushed.digest,
            "target_commitish": "main",
            "created_at": "0001-01-01T00:00:00Z",
            "updated_at": "0001-01-01T00:00:00Z",
            "container_metadata": {
                "tag": {"name": pushed.tag, "digest": pushed.digest},
                "manifest": {"digest": pushed.digest, "size": 1782},
            },
            "package_url": f"ghcr.io/{pushed.path}:{pushed.tag}",
        },
        "registry": {"type": "CONTAINER", "vendor": "GitHub Inc"},
    }


GITHUB: dict[str, Callable[[Pushed], dict[str, Any]]] = {
    "registry_package": lambda p: {"action": "published", "registry_package": _package(p)},
    "package": lambda p: {"action": "updated", "package": _package(p)},
    "release": lambda p: {
        "action": "published",
        "release": {"id": 11248810, "tag_name": p.tag, "draft": False, "published_at": p.iso},
    },
    "workflow_run": lambda p: {
        "action": "completed",
        "workflow_run": {
            "id": 289782451,
            "name": "Build",
            "head_branch": p.tag,
            "head_sha": "9fce4ee8522b5b7a6b4c0c6cb4e9ddc5ef1f5a8f",
            "event": "push",
            "status": "completed",
            "conclusion": "success",
            "created_at": p.began.iso,
            "run_started_at": p.began.iso,
            "updated_at": p.iso,
            "head_repository": {"full_name": p.path, "fork": False},
        },
        "workflow": {"id": 3028141, "path": ".github/workflows/build.yml"},
    },
    "deployment": lambda p: {
        "action": "created",
        "deployment": {
            "id": 145988746,
            "sha": "9fce4ee8522b5b7a6b4c0c6cb4e9ddc5ef1f5a8f",
            "ref": "main",
            "task": "deploy",
            "payload": {"image": f"ghcr.io/{p.path}:{p.tag}@{p.digest}"},
            "environment": "production",
            "created_at": p.iso,
        },
    },
}


def gitlab(pushed: Pushed, secret: str, kind: str = "pipeline", **changes: Any) -> Signed:
    """A pipeline of a tag that succeeded, or a release; signed if the secret is for that."""
    began, moment = (
        datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        for one in (pushed.began, pushed)
    )
    project = {
        "id": 1,
        "name": "Gitlab Test",
        "web_url": f"https://git.example.com/{pushed.path}",
        "namespace": "Gitlab Org",
        "path_with_namespace": pushed.path,
        "default_branch": "main",
    }
    attributes: dict[str, Any] = {
        "id": 31,
        "ref": pushed.tag,
        "tag": True,
        "sha": "bcbb5ec396a2c0f828686f14fac9b80b780504f2",
        "source": "push",
        "status": "success",
        "created_at": began,
        "finished_at": moment,
        "duration": 63,
    }
    pipeline = {"object_kind": "pipeline", "object_attributes": attributes | changes}
    release: dict[str, Any] = {
        "id": 1,
        "object_kind": "release",
        "action": "create",
        "tag": pushed.tag,
        "created_at": moment,
        "released_at": moment,
    }
    other: dict[str, Any] = {"object_kind": kind}
    payload = {"pipeline": pipeline, "release": release | changes}.get(kind, other)
    body = json.dumps(payload | {"project": project}).encode()
    key = str(uuid.uuid4())
    headers = {
        "Content-Type": "application/json",
        "X-Gitlab-Event": "Release Hook" if kind == "release" else "Pipeline Hook",
        "X-Gitlab-Instance": "https://git.example.com",
        "X-Gitlab-Webhook-UUID": str(uuid.uuid4()),
        "Idempotency-Key": key,
    }
    if secret.startswith("whsec_"):
        headers |= standard(body, secret, key)
    else:
        headers["X-Gitlab-Token"] = secret
    return Signed("gitlab", body, headers)


def dockerhub(pushed: Pushed, secret: str) -> Signed:
    """Docker Hub signs nothing; the address has a token."""
    namespace, _, name = pushed.path.partition("/")
    payload = {
        "callback_url": "https://registry.hub.docker.com/u/someone/hook/2141b5bi5i5b02bec211i4/",
        "push_data": {"pushed_at": int(pushed.at), "pusher": "someone", "tag": pushed.tag},
        "repository": {
            "name": name,
            "namespace": namespace,
            "repo_name": pushed.path,
            "repo_url": f"https://registry.hub.docker.com/u/{pushed.path}/",
            "status": "Active",
        },
    }
    return Signed("dockerhub", json.dumps(payload).encode(), JSON, {"token": secret})


def harbor(pushed: Pushed, secret: str, kind: str = "PUSH_ARTIFACT") -> Signed:
    """In Harbor's default format."""
    namespace, _, name = pushed.path.partition("/")
    payload = {
        "type": kind,
        "occur_at": int(pushed.at),
        "operator": "admin",
        "event_data": {
            "resources": [
                {
                    "digest": pushed.digest,
                    "tag": pushed.tag,
                    "resource_url": f"{HOST}/{pushed.path}:{pushed.tag}",
                }
            ],
            "repository": {
                "date_created": int(pushed.at),
                "name": name,
                "namespace": namespace,
                "repo_full_name": pushed.path,
                "repo_type": "private",
            },
        },
    }
    return Signed("harbor", json.dumps(payload).encode(), JSON | {"Authorization": secret})


def harbor_cloud(pushed: Pushed, secret: str, kind: str = "harbor.artifact.pushed") -> Signed:
    """In the format of CloudEvents, which Harbor has beside its own since 2.8."""
    default = harbor(pushed, secret)
    said = json.loads(default.body)
    payload = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "requestid": str(uuid.uuid4()),
        "source": "/projects/2/webhook/policies/15",
        "type": kind,
        "datacontenttype": "application/json",
        "time": pushed.iso,
        "data": said["event_data"],
        "operator": said["operator"],
    }
    headers = default.headers | {"Content-Type": "application/cloudevents+json"}
    return replace(default, body=json.dumps(payload).encode(), headers=headers)


def distribution(pushed: Pushed, secret: str, action: str = "push") -> Signed:
    """An envelope with a layer and the manifest, as the registry sends it."""
    media = "application/vnd.docker.distribution.manifest.v2+json"
    event = {
        "id": str(uuid.uuid4()),
        "timestamp": pushed.iso.replace("Z", "123Z") if "." in pushed.iso else pushed.iso,
        "action": action,
        "target": {
            "mediaType": media,
            "size": 708,
            "digest": pushed.digest,
            "length": 708,
            "repository": pushed.path,
            "url": f"https://{HOST}/v2/{pushed.path}/manifests/{pushed.digest}",
            "tag": pushed.tag,
        },
        "request": {"id": "6df24a34", "addr": "192.0.2.11:42961", "host": HOST, "method": "PUT"},
        "actor": {},
        "source": {"addr": "xtal.local:5000", "instanceID": "a53db899"},
    }
    layer = event | {
        "id": str(uuid.uuid4()),
        "target": {
            "mediaType": "application/octet-stream",
            "digest": "sha256:" + "1a" * 32,
            "repository": pushed.path,
        },
    }
    headers = {
        "Content-Type": "application/vnd.docker.distribution.events.v1+json",
        "Authorization": f"Bearer {secret}".strip(),
    }
    return Signed("distribution", json.dumps({"events": [layer, event]}).encode(), headers)


def quay(pushed: Pushed, secret: str) -> Signed:
    """Quay signs nothing either, and tells neither digest nor time."""
    payload = {
        "name": pushed.path.rpartition("/")[2],
        "repository": pushed.path,
        "namespace": pushed.path.partition("/")[0],
        "docker_url": f"quay.io/{pushed.path}",
        "homepage": f"https://quay.io/repository/{pushed.path}",
        "updated_tags": [pushed.tag],
    }
    return Signed("quay", json.dumps(payload).encode(), JSON, {"token": secret})


def quay_once(pushed: Pushed, secret: str) -> Signed:
    """As older versions of Quay tell: each tag with the image that it names now."""
    today = quay(pushed, secret)
    older = {
        "updated_tags": {pushed.tag: "1a" * 32},
        "pushed_image_count": 2,
        "visibility": "private",
    }
    return replace(today, body=json.dumps(json.loads(today.body) | older).encode())


def generic(pushed: Pushed, secret: str, *, signed_at: float | None = None) -> Signed:
    """What any CI can send."""
    image = f"{HOST}/{pushed.path}:{pushed.tag}"
    body = json.dumps({"image": image, "digest": pushed.digest, "at": pushed.iso}).encode()
    return Signed("generic", body, JSON | standard(body, secret, str(uuid.uuid4()), signed_at))


def standard(body: bytes, secret: str, key: str, at: float | None = None) -> dict[str, str]:
    """Headers of Standard Webhooks."""
    moment = str(int(time.time() if at is None else at))
    raw = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    made = hmac.new(raw, f"{key}.{moment}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": key,
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{base64.b64encode(made).decode()}",
    }


JSON = {"Content-Type": "application/json"}
OTHER_WAYS: dict[str, Callable[[Pushed, str], Signed]] = {
    "harbor": harbor_cloud,
    "quay": quay_once,
}
WAYS: dict[str, Callable[[Pushed, str], Signed]] = {
    "github": github,
    "gitlab": gitlab,
    "dockerhub": dockerhub,
    "harbor": harbor,
    "distribution": distribution,
    "quay": quay,
    "generic": generic,
}
REGISTRIES = {
    "github": "ghcr.io/",
    "gitlab": f"{HOST}/",
    "dockerhub": "",
    "harbor": f"{HOST}/",
    "distribution": f"{HOST}/",
    "quay": "quay.io/",
    "generic": f"{HOST}/",
}
