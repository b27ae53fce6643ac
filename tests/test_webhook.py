"""Webhooks: who may ask for a deploy, of what, and what is answered."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.blocks.system import Secret

from flows.pushes.guard import Lines
from tests.lab.busy import busy
from tests.lab.deliveries import (
    DIGEST,
    HOST,
    JSON,
    OTHER_WAYS,
    REGISTRIES,
    WAYS,
    Pushed,
    Signed,
    distribution,
    dockerhub,
    generic,
    github,
    harbor,
    harbor_cloud,
    quay,
)
from tests.lab.webhooks import Receiver, Waiting, ignored, refused

TOLD = {"github", "harbor", "distribution", "generic"}  # who tell the digest


@pytest.mark.parametrize("sender", WAYS)
def test_a_push_becomes_a_run_with_the_pushed_digest(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    answer = receiver.send(WAYS[sender](Pushed(app.path), receiver.secrets[sender]))
    assert answer.status_code == 202, answer.text
    (run,) = app.runs()
    told = answer.json()
    assert told["outcome"] == "accepted"
    assert told["runs"][0]["app"] == app.name
    assert told["runs"][0]["run"] == str(run.id)
    assert answer.headers["Location"].endswith(str(run.id))
    digest = f"@{DIGEST}" if sender in TOLD else ""
    assert run.parameters["image"] == f"{app.image}:1.5{digest}"
    assert run.parameters["wait"] >= 300
    assert run.state_name == "Scheduled"  # and is found in the history, also if it never begins
    assert run.name == f"deploy {app.name} {run.parameters['image']}"
    assert set(run.tags) == {f"app:{app.name}", "push", sender}


@pytest.mark.parametrize("sender", OTHER_WAYS)
def test_a_senders_other_format_is_understood_too(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    signed = OTHER_WAYS[sender](Pushed(app.path), receiver.secrets[sender])
    for _ in range(2):
        assert receiver.send(signed).status_code == 202
    digest = f"@{DIGEST}" if sender in TOLD else ""
    assert [run.parameters["image"] for run in app.runs()] == [f"{app.image}:1.5{digest}"]
    if sender == "harbor":
        secret, now = receiver.secrets["harbor"], time.time()
        ignored(receiver.send(harbor_cloud(Pushed(app.path), secret, "harbor.artifact.pulled")), "")
        receiver.send(harbor_cloud(Pushed(app.path, "1.4", at=now - 60), secret))
        app.settled({"1.4": "Superseded", "1.5": "Scheduled"})  # by the time that it tells


@pytest.mark.parametrize("sender", WAYS)
def test_without_the_senders_own_proof_there_is_no_run(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    pushed, secret = Pushed(app.path), receiver.secrets[sender]
    right = WAYS[sender](pushed, secret)
    other = next(s for name, s in receiver.secrets.items() if name != sender)
    wrong = [
        replace(right, headers=JSON, query={}),
        WAYS[sender](pushed, other),
        WAYS[sender](pushed, secret + "x"),
        WAYS[sender](pushed, secret[:-1]),
        WAYS[sender](pushed, ""),
        replace(WAYS["generic"](pushed, other), sender=sender),
    ]
    if sender in ("github", "generic"):  # who sign the body
        wrong.append(replace(right, body=right.body.replace(b"1.5", b"1.6")))
    if sender == "generic":
        wrong.append(replace(right, headers=right.headers | {"webhook-id": "another"}))
    for forged in wrong:
        refused(receiver.send(forged), 401, "It is not signed with a secret of")
    assert app.runs() == []
    assert receiver.send(right).status_code == 202


@pytest.mark.parametrize("sender", WAYS)
def test_a_sender_without_a_long_secret_is_off(receiver: Receiver, sender: str) -> None:
    app = Waiting(REGISTRIES[sender])
    file = receiver.folder / sender
    before = file.read_text()
    try:
        for secret in ("", "0123456789abcde"):
            file.write_text(secret)
            words = f"Secret block named nonstop-webhook-{sender}"
            refused(receiver.send(WAYS[sender](Pushed(app.path), secret)), 404, words)
        file.unlink()
        refused(receiver.send(WAYS[sender](Pushed(app.path), "")), 404, words)
    finally:
        file.write_text(before)
    assert app.runs() == []


def test_a_secret_may_be_a_block_and_have_two_lines_while_it_is_changed(receiver: Receiver) -> None:
    app = Waiting(REGISTRIES["github"])
    file = receiver.folder / "github"
    before = file.read_text()
    file.unlink()
    old, new = "the-old-one-0123456789", "the-new-one-0123456789"
    try:
        refused(receiver.send(github(Pushed(app.path), old)), 404, "is off")
        block: Secret[str] = Secret(value=f"{old}\n{new}\n")
        block.save("nonstop-webhook-github", overwrite=True)
        for tag, secret in (("a", old), ("b", new)):
            assert receiver.send(github(Pushed(app.path, tag), secret)).status_code == 202
        Secret(value=new).save("nonstop-webhook-github", overwrite=True)
        refused(receiver.send(github(Pushed(app.path, "c"), old)), 401, "not signed")
    finally:
        file.write_text(before)
    assert len(app.runs()) == 2


def test_deliveries_of_one_moment_look_their_secret_up_once(prefect: None, tmp_path: Path) -> None:
    app, secret = Waiting(REGISTRIES["github"]), "in-a-block-0123456789"
    Secret(value=secret).save("nonstop-webhook-github", overwrite=True)
    block = "/block_documents/name/nonstop-webhook-github?include_secrets=true"
    with busy(block, 0, slow=2) as server, Receiver(tmp_path) as receiver:
        (tmp_path / "github").unlink()
        signed = github(Pushed(app.path), secret)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(receiver.send, [signed] * 8))
        assert [answer.status_code for answer in answers] == [202] * 8
        assert server.asked == 1
    assert len(app.runs()) == 1


@pytest.mark.parametrize("seconds", [-301, 301, -86400])
def test_what_was_signed_long_ago_or_will_be_is_refused(receiver: Receiver, seconds: float) -> None:
    app = Waiting(f"{HOST}/")
    at = time.time() + seconds
    signed = generic(Pushed(app.path), receiver.secrets["generic"], signed_at=at)
    refused(receiver.send(signed), 401, "not signed")
    assert app.runs() == []


@pytest.mark.parametrize(
    ("tags", "tag", "deploys"),
    [
        ("1.*", "1.5", True),
        ("1.*", "2.0", False),
        ("main", "main", True),
        ("main", "mainly", False),
        ("v[0-9]*", "v3", True),
        ("V*", "v3", False),
        (None, "1.5", False),
    ],
)
def test_the_app_says_which_tags_deploy_it(
    receiver: Receiver, tags: str | None, tag: str, deploys: bool
) -> None:
    app = Waiting(f"{HOST}/", tags=tags)
    answer = receiver.send(harbor(Pushed(app.path, tag), receiver.secrets["harbor"]))
    assert answer.status_code == (202 if deploys else 200)
    assert len(app.runs()) == deploys


def test_a_push_deploys_every_app_with_that_image_and_no_other(receiver: Receiver) -> None:
    one = Waiting(f"{HOST}/")
    two = Waiting(f"{HOST}/", image=f"{one.image}@{DIGEST}")
    others = [
        Waiting(f"{HOST}/", image=image)
        for image in (f"{one.image}-too:1", f"other.example.com/{one.path}:1", f"{one.path}:1")
    ]
    answer = receiver.send(harbor(Pushed(one.path), receiver.secrets["harbor"]))
    assert {run["app"] for run in answer.json()["runs"]} == {one.name, two.name}
    assert [len(app.runs()) for app in (one, two, *others)] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("prefix", ["docker.io/", "index.docker.io/", ""])
def test_docker_hub_has_several_names(receiver: Receiver, prefix: str) -> None:
    app = Waiting(prefix)
    assert receiver.send(dockerhub(Pushed(app.path), receiver.secrets["dockerhub"])).is_success
    official = Waiting(prefix, image=f"{prefix}{app.name}:1")
    assert receiver.send(
        dockerhub(Pushed(f"library/{app.name}"), receiver.secrets["dockerhub"])
    ).is_success
    assert [len(one.runs()) for one in (app, official)] == [1, 1]


def test_a_registry_also_tells_what_is_no_push(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/")
    secret = receiver.secrets["distribution"]
    ignored(receiver.send(distribution(Pushed(app.path), secret, "pull")), "No event")
    ignored(receiver.send(distribution(Pushed(app.path, ""), secret)), "No event")
    ignored(
        receiver.send(harbor(Pushed(app.path), receiver.secrets["harbor"], "PULL_ARTIFACT")), "Only"
    )
    untagged = Pushed(app.path, DIGEST)
    ignored(receiver.send(harbor(untagged, receiver.secrets["harbor"])), "No artifact")
    assert app.runs() == []


def test_of_several_tags_the_app_takes_the_one_that_it_waits_for(receiver: Receiver) -> None:
    app = Waiting("quay.io/", tags="1.*")
    signed = quay(Pushed(app.path), receiver.secrets["quay"])
    payload = json.loads(signed.body) | {"updated_tags": ["latest", "1.7", "1.8"]}
    assert receiver.send(replace(signed, body=json.dumps(payload).encode())).is_success
    assert [run.parameters["image"] for run in app.runs()] == [f"{app.image}:1.7"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("sender", ["harbor", "quay"])
def test_what_is_no_json_object_is_refused_without_repeating_it(
    receiver: Receiver, sender: str, body: bytes
) -> None:
    signed = WAYS[sender](Pushed("team/x"), receiver.secrets[sender])
    refused(receiver.send(replace(signed, body=body)), 400, "The body is no JSON object.")
    headers = signed.headers | {"Content-Type": "application/x-www-form-urlencoded"}
    form = replace(signed, body=b"payload=" + body, headers=headers)
    refused(receiver.send(form), 400, "The body is no JSON object.")


@pytest.mark.parametrize("sender", WAYS)
def test_nothing_that_was_sent_is_repeated(receiver: Receiver, sender: str) -> None:
    pushed = Pushed("team/<script>canary", "canary-tag")
    answer = receiver.send(WAYS[sender](pushed, receiver.secrets[sender]))
    assert "canary" not in answer.text
    assert receiver.client.get("/webhooks/canary").status_code == 404
    assert "canary" not in receiver.client.post("/webhooks/canary?canary=1").text


def test_an_unknown_address_and_method_are_told_in_words(receiver: Receiver) -> None:
    refused(receiver.client.post("/webhooks/nobody"), 404, "Not Found")
    answer = receiver.client.get("/webhooks/github")
    refused(answer, 405, "Method Not Allowed")
    assert answer.headers["Allow"] == "POST"


def test_health_and_metrics_are_there(receiver: Receiver) -> None:
    answer = receiver.client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"prefect": "answers"})
    app = Waiting("quay.io/")
    receiver.send(quay(Pushed(app.path), receiver.secrets["quay"]))
    text = receiver.client.get("/metrics").text
    assert f'nonstop_webhook_runs_total{{app="{app.name}"}} 1.0' in text
    assert 'nonstop_webhook_requests_total{sender="quay",status="202"}' in text
    assert 'nonstop_webhook_seconds_bucket{le="0.05",sender="quay"}' in text


def test_every_delivery_is_a_line_of_json_without_secrets(
    receiver: Receiver, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    app = Waiting("ghcr.io/")
    signed = github(Pushed(app.path), receiver.secrets["github"])
    run = receiver.send(signed).json()["runs"][0]["run"]
    receiver.send(Signed("dockerhub", b"{}", JSON, {"token": receiver.secrets["github"]}))
    wanted: list[logging.LogRecord] = []
    deadline = time.monotonic() + 60
    while len(wanted) < 2 and time.monotonic() < deadline:  # who asks is answered first
        told_of = [r for r in caplog.records if r.name == "nonstop.webhook"]
        wanted = [record for record in told_of if hasattr(record, "fields")]
        time.sleep(0.05)
    lines = [Lines().format(record) for record in wanted]
    told = json.loads(lines[0])
    assert told["delivery"] == signed.headers["X-GitHub-Delivery"]
    assert (told["sender"], told["status"], told["runs"]) == ("github", 202, [run])
    assert json.loads(lines[1])["status"] == 401
    assert not any(secret in line for line in lines for secret in receiver.secrets.values())


def test_the_readmes_line_for_any_ci_deploys(receiver: Receiver) -> None:
    app = Waiting(f"{HOST}/")
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = re.findall(r"```sh\n(body=.*?)```", readme, re.DOTALL)
    script = block.replace("registry.example.com/shop", app.image)
    script = script.replace("http://127.0.0.1:4280", receiver.url)
    said = subprocess.run(
        ["sh", "-ec", script],
        env=os.environ | {"SECRET": receiver.secrets["generic"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["outcome"] == "accepted"
    assert [run.parameters["image"] for run in app.runs()] == [f"{app.image}:1.5"]
