"""Webhooks: what was answered is kept on the disk until the Prefect server has it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.pushes.outbox import LONGEST, REMEMBERED, Kept, Outbox
from flows.pushes.runs import ANSWER, FRESH
from flows.pushes.senders import SECRETS
from tests.lab.busy import busy
from tests.lab.deliveries import HOST, Pushed, Signed, harbor, quay
from tests.lab.webhooks import KEPT, Receiver, Waiting, ignored, refused

ROOT = Path(__file__).parents[1]
BULK = "/create_flow_run/bulk"


def push(app: Waiting, receiver: Receiver, tag: str = "1.5", at: float = 0) -> Signed:
    """A push of the app, now or at a time."""
    return harbor(Pushed(app.path, tag, at=at or time.time()), receiver.secrets["harbor"])


@contextmanager
def command(receiver: Receiver) -> Iterator[subprocess.Popen[bytes]]:
    """Within, the command runs where that receiver would be."""
    environment = {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PREFECT_HOME": str(receiver.folder),
        SECRETS: str(receiver.folder),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "flows.webhook", "--port", str(receiver.port)],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not answers(receiver):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def answers(receiver: Receiver) -> bool:
    """Whether it is there."""
    try:
        return receiver.client.get("/health").is_success
    except httpx.TransportError:
        return False


def pending(answer: httpx.Response) -> str:
    """Where the run of a push that was only kept will be found."""
    assert answer.status_code == 202, answer.text
    (run,) = answer.json()["runs"]
    assert run["run"] is None
    assert answer.json()["message"].startswith(f"The run of {run['app']} follows: ")
    assert answer.headers["Location"] == run["address"]
    return str(run["address"])


def test_what_a_busy_server_does_not_take_is_kept_and_handed_over(
    prefect: None, tmp_path: Path
) -> None:
    app = Waiting(f"{HOST}/")
    with busy(BULK, 2), Receiver(tmp_path) as receiver:
        signed = push(app, receiver)
        answer = receiver.send(signed)
        assert answer.elapsed.total_seconds() < 5
        assert pending(answer) == pending(receiver.send(signed))
        assert "nonstop_webhook_waiting 1.0" in receiver.client.get("/metrics").text
        run = receiver.run(answer)
        assert [str(one.id) for one in app.runs()] == [run["run"]]
        assert receiver.run(receiver.send(signed))["run"] == run["run"]
        assert "nonstop_webhook_waiting 0.0" in receiver.client.get("/metrics").text


def test_pushes_while_the_server_is_away_outlive_the_receiver_too(
    prefect: None, tmp_path: Path
) -> None:
    app, gone, tagged = Waiting(f"{HOST}/"), Waiting(f"{HOST}/"), Waiting("quay.io/")
    now = time.time() - 60
    with ExitStack() as running:
        with busy(BULK, 0):
            receiver = running.enter_context(Receiver(tmp_path))
            receiver.run(receiver.send(push(gone, receiver, "1.0")))
        addresses = [
            pending(receiver.send(push(app, receiver, f"1.{n}", now + n))) for n in (1, 3, 2)
        ]
        pending(receiver.send(push(gone, receiver)))
        by_quay = quay(Pushed(tagged.path), receiver.secrets["quay"])
        assert pending(receiver.send(by_quay)) == pending(receiver.send(by_quay))
        looked = receiver.client.get(addresses[0])
        assert (looked.status_code, looked.headers["Retry-After"]) == (202, "1")
        nobody = harbor(Pushed("team/nobody"), receiver.secrets["harbor"])
        refused(receiver.send(nobody), 503, "deliver it again")  # it may be described meanwhile
    assert app.runs() == []
    gone.leave()
    with Receiver(tmp_path) as restarted:
        looks = [restarted.client.get(address) for address in addresses]
        assert [look.status_code for look in looks] == [303] * 3
        restarted.run(restarted.send(by_quay))
        assert len(tagged.runs()) == 1
        (run,) = app.runs()
        assert {look.headers["Location"].rpartition("/")[2] for look in looks} == {str(run.id)}
        assert [look.json()["newer"] for look in looks] == [True, False, True]
        assert str(run.parameters["image"]).startswith(f"{app.image}:1.3@")
        assert "newest-of-3" in run.tags


def test_a_receiver_that_dies_loses_none_and_doubles_none(prefect: None, tmp_path: Path) -> None:
    apps, receiver = [Waiting(f"{HOST}/") for _ in range(40)], Receiver(tmp_path)
    pushes = [push(app, receiver) for app in apps]
    answered: dict[int, httpx.Response] = {}
    with command(receiver) as dying:

        def send(number: int) -> None:
            with suppress(httpx.TransportError):  # it has died, so this one was not answered
                answered[number] = receiver.send(pushes[number])
            if len(answered) >= len(apps) // 2:
                dying.send_signal(signal.SIGKILL)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, range(len(apps))))
    assert len(apps) // 2 <= len(answered) < len(apps)
    with command(receiver):
        for number, app in enumerate(apps):
            answer = answered.get(number) or receiver.send(pushes[number])
            assert receiver.run(answer)["app"] == app.name
    assert [len(app.runs()) for app in apps] == [1] * len(apps)


def test_a_run_whose_making_was_not_written_down_any_more_is_not_made_again(
    prefect: None, tmp_path: Path
) -> None:
    app = Waiting(f"{HOST}/")
    with Receiver(tmp_path) as receiver:
        signed = push(app, receiver)
        run = receiver.run(receiver.send(signed))["run"]
    with closing(sqlite3.connect(tmp_path / KEPT)) as file, file:
        file.execute("UPDATE pushes SET run = NULL")  # as a receiver that died just then leaves it
    with Receiver(tmp_path) as restarted:
        assert restarted.run(restarted.send(signed))["run"] == run
    assert [str(one.id) for one in app.runs()] == [run]


def test_what_another_receiver_kept_and_left_is_handed_over_when_it_comes_again(
    prefect: None, tmp_path: Path
) -> None:
    app = Waiting(f"{HOST}/")
    with Receiver(tmp_path) as receiver:
        signed = push(app, receiver)
        first = receiver.run(receiver.send(signed))
        with get_client(sync_client=True) as client:
            client.delete_flow_run(UUID(first["run"]))
        with closing(sqlite3.connect(tmp_path / KEPT)) as file, file:
            file.execute("UPDATE pushes SET run = NULL, key = key || '2', id = 'other'")
        looked = receiver.client.get("/webhooks/pushes/other")
        assert looked.status_code == 303
        assert [str(run.id) for run in app.runs()] == [looked.json()["run"]]


def test_a_push_that_the_server_never_takes_holds_nobody_else_up(
    prefect: None, tmp_path: Path
) -> None:
    good, bad = Waiting(f"{HOST}/"), Waiting(f"{HOST}/")
    with busy(f"{bad.deployment}{BULK}", 1000), Receiver(tmp_path) as receiver:
        pending(receiver.send(push(bad, receiver)))
        deadline = time.monotonic() + 60
        while receiver.send(push(good, receiver, uuid4().hex[:8])).json()["runs"][0]["run"] is None:
            assert time.monotonic() < deadline  # the tries that come soon after each other are over
            time.sleep(0.5)
        assert "nonstop_webhook_waiting 1.0" in receiver.client.get("/metrics").text
    assert bad.runs() == []


def test_apps_that_take_long_to_read_are_read_once(prefect: None, tmp_path: Path) -> None:
    app = Waiting(f"{HOST}/")
    with busy("/deployments/filter", 0, slow=1.5 * ANSWER), Receiver(tmp_path) as receiver:
        signed = push(app, receiver)
        deadline = time.monotonic() + 60
        while (answer := receiver.send(signed)).status_code == 503:
            assert time.monotonic() < deadline
        receiver.run(answer)
    assert len(app.runs()) == 1


def test_while_the_server_does_not_answer_only_who_comes_first_waits(
    prefect: None, tmp_path: Path
) -> None:
    apps = [Waiting(f"{HOST}/") for _ in range(4)]
    apps.append(untagged := Waiting("quay.io/"))
    with busy("", 0) as server, Receiver(tmp_path) as receiver:
        known = push(apps[0], receiver, "1.0")
        run = receiver.run(receiver.send(known))["run"]
        by_quay = quay(Pushed(untagged.path), receiver.secrets["quay"])
        server.slow = 2 * ANSWER
        time.sleep(FRESH)
        pushes = [push(app, receiver) for app in apps[:-1]] + [by_quay]
        answers = [receiver.send(signed) for signed in pushes]
        again = receiver.send(known)
        assert again.json()["runs"][0]["run"] == run
        took = [answer.elapsed.total_seconds() for answer in (*answers, again)]
        assert ANSWER <= took[0] < 2 * ANSWER
        assert max(took[1:]) < ANSWER / 4
        server.slow = 0
        for answer in answers:
            receiver.run(answer)
        deadline = time.monotonic() + 60
        while not receiver.send(push(apps[1], receiver, uuid4().hex[:8])).json()["runs"][0]["run"]:
            assert time.monotonic() < deadline  # its answers are waited for again
            time.sleep(0.5)
    assert [len(app.runs()) for app in (apps[0], apps[2], untagged)] == [2, 1, 1]


def test_what_is_waited_for_no_more_is_not_cancelled(prefect: None, tmp_path: Path) -> None:
    app, untagged = Waiting(f"{HOST}/"), Waiting("quay.io/")
    with busy("", 0) as server, Receiver(tmp_path) as receiver:
        known = push(app, receiver)
        run = receiver.run(receiver.send(known))["run"]
        by_quay = quay(Pushed(untagged.path), receiver.secrets["quay"])
        requests: dict[str, Callable[[], httpx.Response]] = {
            f"/flow_runs/{run}": lambda: receiver.send(known),
            "/flow_runs/filter": lambda: receiver.send(by_quay),
            "/api/health": lambda: receiver.client.get("/health"),
        }
        time.sleep(FRESH)
        for server.path, request in requests.items():
            server.slow, server.asked = 2 * ANSWER, 0
            assert ANSWER <= request().elapsed.total_seconds() < 2 * ANSWER
            assert server.asked == 1
            server.slow = 0
            time.sleep(3 * ANSWER)  # it is answered, and the server counts as there again
        assert server.given_up == 0


def test_what_cannot_be_kept_is_delivered_again(prefect: None, tmp_path: Path) -> None:
    app = Waiting(f"{HOST}/")
    with Receiver(tmp_path) as receiver:
        signed = push(app, receiver)
        with closing(sqlite3.connect(tmp_path / KEPT)) as other:
            other.execute("BEGIN EXCLUSIVE")
            answer = receiver.send(signed)
        refused(answer, 503, "The push cannot be kept, the receiver's log says why")
        assert int(answer.headers["Retry-After"]) > 0
        assert app.runs() == []
        receiver.run(receiver.send(signed))
    assert len(app.runs()) == 1


def test_a_push_of_an_app_that_left_meanwhile_is_refused_and_then_ignored(
    receiver: Receiver,
) -> None:
    app, latest = Waiting(f"{HOST}/"), Waiting(f"{HOST}/")
    receiver.run(receiver.send(push(latest, receiver)))
    app.leave()
    refused(receiver.send(push(app, receiver)), 503, "deliver it again")
    ignored(receiver.send(push(app, receiver)), "No app has that image")


def test_a_push_that_nobody_knows_has_no_address(receiver: Receiver) -> None:
    for name in (str(uuid4()), "x", "%00"):
        refused(receiver.client.get(f"/webhooks/pushes/{name}"), 404, "No such push is known here")


def kept(number: int, run: UUID | None) -> Kept:
    """A push as the outbox has it."""
    return Kept(str(uuid4()), f"key-{number}", "shop", uuid4(), None, {}, run)


def test_the_outbox_grows_no_more_and_deploys_nothing_of_last_week(tmp_path: Path) -> None:
    path = tmp_path / KEPT
    pushes = [kept(number, uuid4()) for number in range(1, REMEMBERED + 3)]
    with closing(Outbox(path)) as outbox:
        outbox.keep([kept(0, None), *pushes])
        outbox.handed(pushes)
        known = [outbox.of_key(f"key-{number}") is not None for number in range(4)]
        assert known == [True, False, False, True]  # what waits is not forgotten
        assert [push.key for push in outbox.waiting()] == ["key-0"]
    for ago, waiting in ((LONGEST - 60, 1), (LONGEST + 60, 0)):
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE pushes SET kept = ?", (time.time() - ago,))
        with closing(Outbox(path)) as outbox:
            assert len(outbox.waiting()) == waiting
            assert outbox.of_id(pushes[-1].id) == pushes[-1]


def test_without_a_place_for_pushes_the_receiver_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "nonstop-pushes-127.0.0.1-1-api.db"
    file.write_text("no database, but of a length that could be one" * 100)
    done = subprocess.run(
        [sys.executable, "-m", "flows.webhook"],
        cwd=ROOT,
        env=os.environ
        | {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert f"Pushes cannot be kept in {file} (file is not a database)" in done.stderr
    assert "Traceback" not in done.stderr
