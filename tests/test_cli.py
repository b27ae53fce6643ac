"""The nonstop command as its users run it: in a shell, with exit codes, on two streams."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from flows.automations import SILENCE
from tests.lab import history
from tests.lab.command import Command, deploying
from tests.lab.long import LONG
from tests.lab.served import cancel
from tests.lab.shop import Shop, free_port

ROOT = Path(__file__).parents[1]


def test_deploy_status_plan_and_rollback_as_in_the_readme(command: Command) -> None:
    shop = command.shop
    out, _ = command.run("plan", shop.name)
    assert (
        f"start release 1 from nonstop-lab-hello:v1 (pull_policy: never):\n  {shop.name}-1-1 at"
        in out
    )
    assert shop.containers() == {}
    assert not shop.api.containers(all=True, filters={"name": shop.proxy})
    out, err = command.run("deploy", shop.name)
    assert f"succeeded Release 1 of {shop.name} serves." in out
    assert "reload-nginx" in err
    assert "cutover to release 1 proven" in err
    command.run("deploy", shop.name, "--image", "nonstop-lab-hello:v2")
    assert shop.get().text.endswith(",v2")
    out, _ = command.run("status", shop.name)
    assert re.search(r"2 +│ live +│ nonstop-lab-hello:v2 +│ 2 of 2", out)
    assert re.search(r"1 +│ kept +│ nonstop-lab-hello:v1 +│ 0 of 2", out)
    before = shop.containers(), shop.sites()
    out, _ = command.run("plan", shop.name, "--image", "nonstop-lab-hello:v4")
    assert "from release 2 to 3" in out
    assert "drain release 2" in out
    assert "keep release 2" in out
    assert "remove release 1" in out
    assert (shop.containers(), shop.sites()) == before
    command.run("rollback", shop.name)
    assert shop.get().text.endswith(",v1")
    out, _ = command.run("recover", shop.name)
    assert out == f"{shop.name}: nothing to put right, release 3 serves.\n"


def test_behind_a_stopped_proxy_status_shows_what_docker_knows(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.api.stop(shop.proxy)
    why = f"The proxy {shop.proxy} is exited: start it with `docker start {shop.proxy}`."
    out, _ = command.run("status", shop.name, code=2)
    assert re.search(r"1 +│ unknown +│ nonstop-lab-hello:v1 +│ 2 of 2", out)
    assert why in out
    every = command.start("status", "--json")  # of other tests, too, which come and go
    (one,) = [t for t in json.loads(every.communicate(timeout=120)[0]) if t["app"] == shop.name]
    assert (one["live"], one["error"]) == (None, why)
    assert every.returncode != 0
    network = shop.description["proxy"]["network"]
    shop.api.start(shop.proxy)
    shop.api.disconnect_container_from_network(shop.proxy, network)
    out, _ = command.run("status", shop.name)
    assert f"`nonstop recover {shop.name}` would connect the proxy to network {network}, " in out


def test_json_is_alone_on_standard_output(command: Command) -> None:
    shop = command.shop
    report = json.loads(command.run("deploy", shop.name, "--json")[0])
    assert (report["outcome"], report["release"]) == ("succeeded", 1)
    assert [step["name"] for step in report["steps"]][-1] == "teardown-blue"
    (status,) = json.loads(command.run("status", shop.name, "--json")[0])
    assert status["live"] == 1
    assert json.loads(command.run("plan", shop.name, "--json")[0])["green"] == 2
    refused = json.loads(command.run("rollback", shop.name, "--json", code=2)[0])
    assert refused["outcome"] == "refused"
    assert "no kept release" in refused["message"]
    command.describe(environment={"CRASH": "start"})
    failed = json.loads(command.run("deploy", shop.name, "--json", code=1)[0])
    assert (failed["outcome"], failed["blue"]) == ("failed", 1)
    assert failed["steps"][-1]["name"] == "roll-back"
    assert any("CRASH" in change for change in failed["changes"])


def test_a_failed_deploy_says_why_and_who_serves(serving: Shop, command: Command) -> None:
    command.describe(environment={"CRASH": "start"})
    out, err = command.run("deploy", serving.name, code=1)
    assert out == ""
    assert re.search(r"2-[12] ended .*[.] Release 1 serves, as before[.]", " ".join(err.split()))
    assert "the database is not there" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deploy", "nobody"), "has no app named nobody (known: "),
        (("rollback", "nobody"), "There is no release of nobody on this engine"),
        (("status", "nobody"), "There is no release of nobody on this engine"),
        (("deploy", "shop", "--file", "no.yaml"), "There is no inventory no.yaml"),
    ],
)
def test_what_is_unknown_is_refused(
    command: Command, arguments: tuple[str, ...], words: str
) -> None:
    assert words in " ".join(command.run(*arguments, code=2)[1].split())


def test_what_the_inventory_says_beside_the_app_holds_for_the_command(command: Command) -> None:
    content = yaml.safe_load(command.file.read_text())
    said = content["deployments"][0]["parameters"]
    command.environment["PREFECT_API_URL"] += "/"  # Prefect takes it, too
    for more, words in (
        ({"wait": 9_999_999}, "wait: input should be less than or equal to 10800"),
        ({"aprove": True}, f"a deploy of {command.shop.name} takes no aprove: take it out"),
    ):
        said |= more
        command.file.write_text(yaml.safe_dump(content))
        _, err = command.run("deploy", command.shop.name, code=2)
        assert words in " ".join(err.split())
    said |= {"approve": True, "approve_within": 1, "image": "nonstop-lab-hello:v2", "wait": 1}
    del said["aprove"]
    command.file.write_text(yaml.safe_dump(content))
    _, err = command.run("deploy", command.shop.name, code=1)
    assert "Nobody approved release 1" in " ".join(err.split())
    assert "nonstop-lab-hello:v2" in command.run("plan", command.shop.name)[0]
    assert command.shop.containers() == {}


def test_a_prefect_server_that_does_not_answer_is_named(command: Command) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    command.environment |= {"PREFECT_API_URL": url}
    _, err = command.run("deploy", command.shop.name, code=2)
    assert f"No Prefect server answers at PREFECT_API_URL={url}" in " ".join(err.split())
    assert command.shop.containers() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, LONG(signal.SIGTERM)])
def test_a_deploy_that_is_interrupted_goes_back_first(
    serving: Shop, command: Command, number: signal.Signals
) -> None:
    with serving.visitors(kinds=["get", "post"]) as heard, deploying(command) as process:
        time.sleep(0.5)
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)  # an impatient second one does not cut the way back
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in err
    assert "Interrupted. Release 1 serves, as before." in " ".join(err.split())
    assert heard.lost == 0, heard.losses
    assert serving.live() == 1
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_a_deploy_that_is_interrupted_when_green_is_good_has_succeeded(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    command.describe(drain={"limit": 60})
    with shop.visitors(kinds=["download"], download=20):
        time.sleep(1)  # one has begun
        process = command.start("deploy", shop.name, "--json")
        assert process.stderr
        while "verify-traffic" not in (line := process.stderr.readline()):
            assert line, "it ended"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    told = json.loads(out)
    assert (told["outcome"], told["release"], told["cleanup"]) == ("succeeded", 2, "pending")
    assert "Release 2 serves. Cleanup is pending" in told["message"]
    assert shop.live() == 2


def test_a_cancel_in_the_ui_has_a_deploy_of_the_command_go_back(
    serving: Shop, command: Command
) -> None:
    with deploying(command, bake=5) as process:
        run = history.runs(serving.name)[0]
        cancel(run["id"])
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Cancelled. Release 1 serves, as before." in " ".join(err.split())
    assert "Traceback" not in err
    run = history.runs(serving.name)[0]
    assert run["state_name"] == "Cancelled"
    assert serving.live() == 1
    assert set(serving.containers()) == {"1-1", "1-2"}


def test_without_a_server_the_history_is_there_when_one_is_started(
    command: Command, tmp_path: Path
) -> None:
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_API_URL": ""}
    command.environment = environment
    command.run("deploy", command.shop.name)
    with deploying(command) as process:
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C: the server hears it as well
        began = time.monotonic()
        _, err = process.communicate(timeout=120)
        assert time.monotonic() - began < 20, err
    assert command.shop.live() == 1
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}/api"
        deadline = time.monotonic() + 120
        while not answers(url):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)
        runs = history.request("POST", f"{url}/flow_runs/filter", {}).json()
        steps = history.request("POST", f"{url}/task_runs/filter", {}).json()
    finally:
        server.terminate()
        server.wait(120)
    assert sorted(run["state_name"] for run in runs) == ["Completed", "Crashed"]
    names = {step["name"].partition(" ")[0] for step in steps}
    assert {"start-green", "health-check", "reload-nginx", "teardown-blue"} <= names


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False


def test_every_command_of_the_readme_is_one_that_is_tried() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = {line.split("  #")[0].strip() for block in blocks for line in block.splitlines()}
    lines |= set(re.findall(r"^\| `(nonstop [^`]*)`", text, re.MULTILINE))
    tried = (
        "make (demo|test|lint)",  # .ci/run
        "nonstop (plan|status|rollback|recover|doctor) shop",
        "nonstop deploy shop --image [a-z0-9./:]+",
        'nonstop deploy shop --(override "[a-z ]+"|at 23:00)',  # test_doors.py
        "prefect (server start|deploy --all)",  # test_prefect_yaml.py
        "nonstop up( --systemd)?",  # test_up.py, test_units.py
        "prefect work-pool create nonstop --type process",
        "prefect worker start --pool nonstop",
        "export PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30",  # what the command sets, below
        r"export PREFECT_API_URL=http://127\.0\.0\.1:4200/api",
        r"python -m flows\.webhook --host 127\.0\.0\.1 --port 4280",  # test_webhook_limits.py
        "(body|signature)=.*|curl .*/webhooks/generic",  # test_webhook.py
        "prefect event emit image.pushed .*",  # test_webhook_events.py
    )
    assert [line for line in lines if not re.fullmatch("|".join(tried), line)] == []


def test_a_run_s_heart_beats_more_often_than_silence_is_a_death() -> None:
    ask = "import flows.cli; from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY as f"
    out = subprocess.run(
        [sys.executable, "-c", f"{ask}; print(f.value())"],
        env={name: os.environ[name] for name in os.environ if "HEARTBEAT" not in name},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert float(out) <= SILENCE / 3
