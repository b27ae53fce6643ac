"""`nonstop up`: everything for one host in one command, supervised, and stopped without a loss."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from prefect.automations import AutomationCore
from prefect.blocks.notifications import (
    CustomWebhookNotificationBlock,
    SendgridEmail,
    SlackWebhook,
)
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from flows.automations import CRASHED, SILENT, TOLD, ensure_automations
from flows.inventory import ENTRYPOINT
from tests.lab.command import BIN
from tests.lab.host import Host
from tests.lab.shop import Shop

RECOVER = {"name": "recover", "entrypoint": "flows.recover.recover"}
LEAVING = {"name": "leaving", "entrypoint": "flows.deploy.rollback"}
SLOW = {"verify": {"bake_time": 60}}


@pytest.fixture(scope="module")
def shop(api: Any) -> Iterator[Shop]:
    made = Shop(api)
    yield made
    made.close()


@pytest.fixture(scope="module")
def host(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host of which every test may expect that it runs, with a release that serves."""
    made = Host(shop, tmp_path_factory.mktemp("host"))
    made.describe(RECOVER, LEAVING)
    with made:
        assert made.ended(made.ask("deploy")) == "Completed"
        yield made


def test_runs_that_the_api_is_asked_for_deploy_and_roll_back(host: Host) -> None:
    steps: list[tuple[str, dict[str, Any], str]] = [
        ("deploy", {"image": "nonstop-lab-hello:v2"}, ",v2"),
        ("rollback", {}, ",v1"),
    ]
    for flow, parameters, text in steps:
        assert host.ended(host.ask(flow, **parameters)) == "Completed"
        assert host.shop.get().text.endswith(text)


def test_a_second_one_on_the_same_host_says_so(host: Host) -> None:
    already = len(host.said())
    assert host.start().wait(120) == 2
    said = f"`nonstop up` runs on this host already, as process {host.process.pid}."
    assert said in " ".join(host.said()[already:].split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server", "127.0.0.1:{port}"), "cannot listen on 127.0.0.1:{port} (Address already"),
        (("--webhooks", "127.0.0.1:{port}"), "The webhook receiver cannot listen on 127.0.0.1"),
        (("--server", "203.0.113.1:4200"), "cannot listen on 203.0.113.1:4200 (Cannot assign"),
        (("--server", "4200"), "'4200' is not an address like 127.0.0.1:4200."),
        (("--file", "no.yaml"), "There is no inventory no.yaml"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    (tmp_path / "prefect.yaml").write_text("deployments: []")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = refused(tmp_path, *(option.format(port=port) for option in options))
    assert words.format(port=port) in " ".join(done.stderr.split())


def test_an_entry_that_cannot_be_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    entry = "{name: shop, entrypoint: flows.deploy.deplo, parameters: {}}"
    (tmp_path / "prefect.yaml").write_text(f"deployments: [{entry}]")
    said = " ".join(refused(tmp_path).stderr.split())
    assert "prefect.yaml: deployment shop (flows.deploy.deplo) cannot be run: " in said


def refused(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `nonstop up` that was refused has said."""
    done = subprocess.run(
        [BIN / "nonstop", "up", *options],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": "", "PREFECT_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_runner_that_dies_is_started_again_and_its_deploy_goes_on(host: Host) -> None:
    already = len(host.said())
    run = begun(host, "deploy", verify={"bake_time": 4})
    host.describe(RECOVER)
    os.kill(host.child("flows.runner"), signal.SIGKILL)
    host.hears("nonstop  the runner ended by signal SIGKILL; it starts again in 1 s", 10, already)
    gone = "removed the deployment rollback/leaving, which prefect.yaml has no more"
    host.hears(gone, 30, already)
    host.hears(" runs deploy/", 30, already)
    assert host.ended(run) == "Completed"


def test_a_part_that_cannot_be_started_for_a_while_is_started_later(host: Host) -> None:
    already, runner = len(host.said()), host.child("flows.runner")
    few = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (3, few[1]))  # none is left
    try:
        os.kill(runner, signal.SIGKILL)
        host.hears("nonstop  the runner could not be started (Too many open files)", 30, already)
    finally:
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, few)
    host.hears(" runs deploy/", 60, already)
    assert host.ended(host.ask("deploy", image="nonstop-lab-hello:v2")) == "Completed"


def test_a_server_that_dies_is_started_again_and_its_deploy_goes_on(host: Host) -> None:
    runner, already = host.child("flows.runner"), len(host.said())
    run = begun(host, "deploy", verify={"bake_time": 6})
    os.kill(host.child("prefect server"), signal.SIGKILL)
    host.hears("nonstop  the server ended by signal SIGKILL; it starts again in 1 s", 10, already)
    assert host.ended(run) == "Completed"
    assert host.child("flows.runner") == runner


def test_a_run_that_is_cancelled_in_the_ui_goes_back_and_was_never_crashed(host: Host) -> None:
    before = served(host.shop)
    run = begun(host, "deploy", **SLOW)
    host.cancel(run)
    assert host.ended(run) == "Cancelled"
    assert served(host.shop) == before
    names = [state["name"] for state in host.get(f"flow_run_states/?flow_run_id={run}")]
    assert names[-3:] == ["Running", "Cancelling", "Cancelled"]


def test_a_run_whose_process_is_killed_has_crashed_and_recover_follows(host: Host) -> None:
    run = begun(host, "deploy", verify={"bake_time": 2})
    os.kill(host.child("prefect.engine"), signal.SIGKILL)
    assert host.ended(run) == "Crashed"
    host.until(lambda: recoveries(host), 30, "a run of recover")
    (recovery,) = recoveries(host)
    assert recovery["parameters"] == {"app": host.shop.name, "wait": 90}
    assert host.ended(recovery["id"]) == "Completed"
    assert host.shop.live()


def recoveries(host: Host) -> list[dict[str, Any]]:
    """The runs of deployment recover for the shop; the flow's own hook made none of them."""
    runs = host.find("flow_runs", deployments={"name": {"any_": ["recover"]}})
    return [run for run in runs if run["parameters"].get("app") == host.shop.name]


def test_a_schedule_and_an_event_deploy_by_themselves(host: Host, api: Any, tmp_path: Path) -> None:
    shop = Shop(api)
    described = shop.described()
    doors = {
        "name": f"{shop.name}-by-itself",
        "entrypoint": ENTRYPOINT,
        "parameters": {"app": described},
        "schedules": [{"cron": "* * * * * */12"}],  # each 12 s: cron's own minutes would take two
        "triggers": [
            {
                "expect": ["image.pushed"],
                "match": {"prefect.resource.id": f"image.{shop.name}"},
                "parameters": {"image": "{{ event.payload.image }}", "wait": 60},
            }
        ],
    }

    def ended(state: str, **parameters: Any) -> list[dict[str, Any]]:
        runs = host.find("flow_runs", deployments={"name": {"any_": [doors["name"]]}})
        found = [run for run in runs if run["state_name"] == state]
        return [run for run in found if parameters.items() <= run["parameters"].items()]

    try:
        second = Host(shop, tmp_path, api=host.url)
        second.describe(doors)
        with second:
            second.until(lambda: ended("Completed"), 120, "a scheduled deploy")
            second.until(lambda: ended("Unchanged"), 120, "a scheduled deploy of what serves")
            (first, *_), (again, *_) = ended("Completed"), ended("Unchanged")
            assert first["auto_scheduled"]
            assert first["start_time"] < again["start_time"]
            assert first["name"] == again["name"] == f"deploy {shop.name} nonstop-lab-hello:v1"
            assert f"app:{shop.name}" in again["tags"]
            event = ("event", "emit", "image.pushed", "--resource-id", f"image.{shop.name}")
            subprocess.run(
                [
                    BIN / "prefect",
                    *event,
                    "--payload",
                    json.dumps({"image": "nonstop-lab-hello:v2"}),
                ],
                env=os.environ | {"PREFECT_API_URL": host.url},
                timeout=120,
                check=True,
            )
            second.until(
                lambda: ended("Completed", image="nonstop-lab-hello:v2"), 90, "the event's deploy"
            )
            deployment = host.get(f"deployments/name/deploy/{doors['name']}")["id"]
            url = f"{host.url}/deployments/{deployment}"
            second.until(lambda: httpx.delete(url, timeout=30).is_success, 30, "its end")
    finally:
        shop.close()


def test_beside_a_server_of_yours_a_failure_is_told_and_sigterm_has_a_deploy_go_back(
    host: Host, api: Any, tmp_path: Path
) -> None:
    shop = Shop(api)
    try:
        with receiver(host.url) as told:
            options = ("--notify", "custom-webhook/lab")
            with Host(shop, tmp_path, api=host.url, options=options) as second:
                assert not [c for c in second.children().values() if "prefect server" in c]
                assert second.ended(second.ask("deploy")) == "Completed"
                bad = shop.described(environment={"CRASH": "start"})
                failed = second.ask("deploy", app=bad)
                assert second.ended(failed) == "Failed"
                second.until(lambda: told, 20, "a notification")
                with temporary_settings({PREFECT_API_URL: host.url}):
                    for block in ("sendgrid-email/lab", "slack-webhook/lab"):
                        ensure_automations(block)
                back = second.ask("rollback")
                second.until(lambda: second.state(back) == "Refused", 120, "a refusal")
                second.until(lambda: back in str(told), 20, "a notification")
                stopped_while_it_deploys(second, second.process.terminate)
            shop.api.stop(shop.proxy, timeout=3)
            assert host.ended(host.ask("recover", "recover", app=shop.name)) == "Refused"
            host.until(lambda: f"recover of {shop.name}: Refused" in subjects(told), 20, "another")
        # SQLite may have a message be sent twice; none is of the run that was cancelled
        said = {one["subject"]: one["body"] for one in told if shop.name in one["subject"]}
        by_url, by_slack = f"deploy of {shop.name}: Failed", f"rollback of {shop.name}: Refused"
        assert set(said) == {by_url, by_slack, f"recover of {shop.name}: Refused"}
        assert re.search(r"2-[12] ended", said[by_url])
        assert "Release 1 serves, as before." in said[by_url]
        assert said[by_url].endswith(f"/runs/flow-run/{failed}")
        assert "has no kept release to roll back to" in said[by_slack]
        assert said[by_slack].endswith(f"/runs/flow-run/{back}")
    finally:
        shop.close()


def subjects(told: list[dict[str, str]]) -> set[str]:
    """Of the notifications."""
    return {one["subject"] for one in told}


def test_ctrl_c_has_a_deploy_go_back(host: Host, api: Any, tmp_path: Path) -> None:
    shop = Shop(api)
    try:
        with Host(shop, tmp_path, api=host.url) as second:
            assert second.ended(second.ask("deploy")) == "Completed"
            stopped_while_it_deploys(second, second.interrupt)
    finally:
        shop.close()


def stopped_while_it_deploys(host: Host, stop: Callable[[], None]) -> None:
    """`nonstop up` is stopped: blue serves, the run is Cancelled, nothing of us is left."""
    with host.shop.visitors(kinds=["get", "post"]) as heard:
        run = begun(host, "deploy", **SLOW)
        below = host.children()
        assert [command for command in below.values() if "prefect.engine" in command]
        began = time.monotonic()
        stop()
        assert host.process.wait(120) == 0
        assert time.monotonic() - began < 45
    assert heard.lost == 0, heard.losses
    assert host.shop.live() == 1
    assert host.state(run) == "Cancelled"
    assert not [pid for pid in below if alive(pid)]


@contextmanager
def receiver(api: str) -> Iterator[list[dict[str, str]]]:
    """What blocks named `lab` have sent: of Slack's type, of a mail's, and of any URL's."""
    told: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            slack = {"subject": sent.get("title"), "body": sent.get("message")}
            told.append(sent if "subject" in sent else slack)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: api}):
            CustomWebhookNotificationBlock(
                name="lab",
                url=f"http://127.0.0.1:{server.server_port}/",
                json_data={"subject": "{{subject}}", "body": "{{body}}"},
            ).save("lab")
            SlackWebhook(url=f"json://127.0.0.1:{server.server_port}/").save("lab")  # not to Slack
            SendgridEmail(api_key="none", sender_email="a@b.example", to_emails=[]).save("lab")
        yield told
        server.shutdown()


def test_a_block_that_is_not_there_is_named(host: Host, tmp_path: Path) -> None:
    options = ("--notify", "slack-webhook/nope")
    second = Host(host.shop, tmp_path, api=host.url, options=options)
    assert second.start().wait(120) == 2
    said = " ".join(second.said().split())
    assert "The Prefect server has no block slack-webhook/nope to notify with: create it" in said


def test_what_the_server_refuses_is_said_once_and_not_tried_again(
    host: Host, tmp_path: Path
) -> None:
    second = Host(host.shop, tmp_path, api=host.url)
    second.describe({**LEAVING, "name": "refused", "concurrency_limit": 0})
    assert second.start().wait(120) == 2
    said = " ".join(second.said().split())
    words = "prefect.yaml: the Prefect server refuses rollback/refused: body.concurrency_limit: "
    assert f"{words}Input should be greater than 0" in said
    assert "Traceback" not in said


def test_automations_are_there_once_as_described_and_are_otherwise_left_alone(host: Host) -> None:
    def there() -> dict[str, dict[str, Any]]:
        found = host.find("automations")
        assert len({one["name"] for one in found}) == len(found)
        return {one["name"]: one for one in found if one["name"].startswith("nonstop: ")}

    ours = {PREFECT_API_URL: host.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}
    with temporary_settings(ours), get_client(sync_client=True) as client:
        before = there()
        ensure_automations()
        assert there() == {name: before[name] for name in before if name != TOLD}
        (silent,) = client.read_automations_by_name(SILENT)
        content = silent.model_dump(include={"name", "trigger", "actions"})
        changed = AutomationCore(description="changed", **content)
        client.create_automation(changed)  # a double
        client.update_automation(silent.id, changed)
        ensure_automations()
        assert there()[SILENT]["description"] == before[SILENT]["description"]
        assert there()[CRASHED] == before[CRASHED]
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 180}):  # Prefect's own
            ensure_automations()
        assert there()[SILENT]["trigger"]["within"] == 540
        ensure_automations()


@pytest.mark.long
def test_a_deploy_that_outlived_its_runner_goes_back_too_when_all_is_stopped(
    host: Host, api: Any, tmp_path: Path
) -> None:
    shop = Shop(api)
    try:
        with Host(shop, tmp_path, api=host.url) as second:
            assert second.ended(second.ask("deploy")) == "Completed"
            begun(second, "deploy", **SLOW)
            below = second.children()
            os.kill(second.child("flows.runner"), signal.SIGKILL)
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(120) == 0
        assert shop.live() == 1
        assert not [pid for pid in below if alive(pid)]
    finally:
        shop.close()


def test_a_killed_one_leaves_nothing_running(host: Host, tmp_path: Path) -> None:
    with Host(host.shop, tmp_path, api=host.url) as second:
        below = second.children()
        second.process.kill()
        second.process.wait()
    assert below
    host.until(lambda: not [pid for pid in below if alive(pid)], 20, "the end of the parts")


def alive(pid: int) -> bool:
    """Whether that process runs; one that only waits to be asked for its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.long
def test_a_run_that_is_silent_because_everything_was_killed_is_found_within_100_seconds(
    host: Host,
) -> None:
    run = begun(host, "deploy", **SLOW)
    already = len(recoveries(host))
    os.kill(host.child("flows.runner"), signal.SIGSTOP)  # it cannot tell of what comes now
    os.kill(host.child("prefect.engine"), signal.SIGKILL)
    os.kill(host.child("flows.runner"), signal.SIGKILL)
    assert host.ended(run, 125) == "Crashed"
    host.until(lambda: len(recoveries(host)) > already, 30, "a run of recover")
    assert host.ended(recoveries(host)[0]["id"], 90) == "Completed"


def begun(host: Host, flow: str, **changes: Any) -> str:
    """A run that has cut over and watches its green."""
    before = served(host.shop)
    run = host.ask(flow, app=host.shop.described(**changes))
    host.until(lambda: served(host.shop) != before, 120, "the cutover")
    return run


def served(shop: Shop) -> str | None:
    """The release that answered once."""
    number: str | None = shop.get().headers.get("X-Nonstop-Release")
    return number
