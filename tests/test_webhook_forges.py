"""Webhooks of GitHub and GitLab: which of their many events deploy, and which do not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest

from tasks.overtaken import age
from tests.lab.deliveries import (
    DIGEST,
    HOST,
    JSON,
    REGISTRIES,
    Pushed,
    Signed,
    github,
    github_event,
    gitlab,
)
from tests.lab.webhooks import Receiver, Waiting, ignored, refused

UNTAGGED = {  # as in GitHub's documented example, and as parts of a multi-platform image are told
    "registry_package": {
        "package_version": {
            "version": DIGEST,
            "container_metadata": {"tag": {"name": "", "digest": DIGEST}},
            "package_url": "ghcr.io/Codertocat/hello-world:",
        }
    }
}
SIGNING = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.mark.parametrize(
    ("event", "digest"),
    [
        ("package", f"@{DIGEST}"),
        ("registry_package", f"@{DIGEST}"),
        ("release", ""),
        ("workflow_run", ""),
        ("deployment", f"@{DIGEST}"),
    ],
)
def test_github_events_that_deploy(receiver: Receiver, event: str, digest: str) -> None:
    app = Waiting("ghcr.io/", tags="1.*")
    assert receiver.send(github(Pushed(app.path), receiver.secrets["github"], event)).is_success
    assert [run.parameters["image"] for run in app.runs()] == [f"{app.image}:1.5{digest}"]


@pytest.mark.parametrize(
    ("event", "changes", "words"),
    [
        ("push", {}, "Only these events deploy: package, "),
        ("registry_package", {"action": "deleted"}, "Only a package that is published"),
        ("registry_package", UNTAGGED, "It is no container image with a tag."),
        ("registry_package", {"registry_package": {"package_type": "npm"}}, "no container image"),
        ("release", {"action": "edited"}, "Only a release that is published"),
        ("workflow_run", {"action": "requested"}, "Only a workflow run that succeeds"),
        ("workflow_run", {"workflow_run": {"conclusion": "failure"}}, "run that succeeds"),
        ("workflow_run", {"workflow_run": {"event": "pull_request"}}, "of pull requests and of"),
        ("workflow_run", {"workflow_run": {"head_repository": {"full_name": "evil/fork"}}}, "fork"),
        ("deployment", {"action": "deleted"}, "Only a deployment that is created"),
    ],
)
def test_github_events_that_do_not(
    receiver: Receiver, event: str, changes: dict[str, Any], words: str
) -> None:
    app = Waiting("ghcr.io/")
    secret = receiver.secrets["github"]
    known = event if event != "push" else "release"
    payload: dict[str, Any] = json.loads(github(Pushed(app.path), secret, known).body)
    for key, value in changes.items():
        payload[key] = payload[key] | value if key == "workflow_run" else value
    ignored(receiver.send(github_event(payload, secret, event)), words)
    assert app.runs() == []


@pytest.mark.parametrize("way", [partial(github, event="workflow_run"), gitlab])
def test_of_work_what_ends_last_is_the_newest_whenever_it_began(
    receiver: Receiver, way: Callable[..., Signed]
) -> None:
    sender = way(Pushed("any"), "").sender
    app, began = Waiting(REGISTRIES[sender]), int(time.time()) - 400
    short = Pushed(app.path, "main", at=began + 40, took=39)
    long = Pushed(app.path, "main", at=began + 300, took=300)  # it pushes the image
    said = [receiver.send(way(one, receiver.secrets[sender])).json() for one in (short, long)]
    first, second = (one["runs"][0]["run"] for one in said)
    wanted, deadline = {first: "Superseded", second: "Scheduled"}, time.monotonic() + 60
    while (states := {str(run.id): run.state_name for run in app.runs()}) != wanted:
        assert time.monotonic() < deadline, f"{states} instead of {wanted}"
        time.sleep(0.05)


def test_a_release_of_gitlab_is_as_new_as_it_is_whatever_date_it_is_given(
    receiver: Receiver,
) -> None:
    app, now = Waiting(f"{HOST}/"), int(time.time())
    past = {"released_at": "2019-11-02 12:55:12 UTC"}  # a historical release, says GitLab
    made = Pushed(app.path, at=now - 10)
    receiver.send(gitlab(made, receiver.secrets["gitlab"], "release", **past))
    assert [age(run)[0] for run in app.runs()] == [now - 10]


def test_github_asks_whether_we_are_there(receiver: Receiver) -> None:
    ping = {"zen": "Design for failure.", "hook_id": 292430182}
    ignored(receiver.send(github_event(ping, receiver.secrets["github"], "ping")), "is right")
    refused(receiver.send(github_event(ping, "another-secret-000", "ping")), 401, "not signed")


def test_github_may_send_a_form(receiver: Receiver) -> None:
    app = Waiting("ghcr.io/")
    secret = receiver.secrets["github"]
    signed = github(Pushed(app.path), secret)
    form = httpx.QueryParams({"payload": signed.body.decode()})
    made = github_event({}, secret, "registry_package")
    body = str(form).encode()
    made.headers["X-Hub-Signature-256"] = (
        "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    )
    made.headers["Content-Type"] = "application/x-www-form-urlencoded"
    assert receiver.send(replace(made, body=body)).status_code == 202
    assert len(app.runs()) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "tag"),
    [
        ("pipeline", {}, "1.5"),
        ("pipeline", {"tag": False, "ref": "Feature/Große_Sache"}, "feature-gro-e-sache"),
        ("release", {}, "1.5"),
    ],
)
def test_gitlab_events_that_deploy(
    receiver: Receiver, kind: str, changes: dict[str, Any], tag: str
) -> None:
    app = Waiting(f"{HOST}/")
    assert receiver.send(
        gitlab(Pushed(app.path), receiver.secrets["gitlab"], kind, **changes)
    ).is_success
    assert [run.parameters["image"] for run in app.runs()] == [f"{app.image}:{tag}"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("tag_push", {}),
        ("push", {}),
        ("deployment", {}),
        ("pipeline", {"status": "running"}),
        ("pipeline", {"source": "merge_request_event"}),
        ("release", {"action": "update"}),
    ],
)
def test_gitlab_events_that_do_not(receiver: Receiver, kind: str, changes: dict[str, Any]) -> None:
    app = Waiting(f"{HOST}/")
    ignored(
        receiver.send(gitlab(Pushed(app.path), receiver.secrets["gitlab"], kind, **changes)),
        "deploy",
    )
    assert app.runs() == []


def test_gitlab_may_sign_instead_and_then_the_header_counts_no_more(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/")
    file = receiver.folder / "gitlab"
    before = file.read_text()
    file.write_text(SIGNING)
    try:
        signed = gitlab(Pushed(app.path), SIGNING)
        forged = replace(signed, headers=JSON | {"X-Gitlab-Token": SIGNING})
        refused(receiver.send(forged), 401, "not signed")
        assert receiver.send(signed).status_code == 202
    finally:
        file.write_text(before)
    assert len(app.runs()) == 1
