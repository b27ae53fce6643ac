"""Webhooks: how large, how fast and how slow a request may be, and how the receiver ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL

from flows.pushes.guard import Limits
from tests.lab.deliveries import Pushed, harbor
from tests.lab.shop import free_port
from tests.lab.webhooks import Receiver, Waiting, refused

ROOT = Path(__file__).parents[1]


def test_a_body_that_is_too_large_is_refused_unread(prefect: None, tmp_path: Path) -> None:
    with Receiver(tmp_path, Limits(size=1000)) as receiver:
        refused(receiver.client.post("/webhooks/harbor", content=b"x" * 1001), 413, "1000 bytes")
        chunks = (b"x" * 100 for _ in range(11))  # without a Content-Length
        refused(receiver.client.post("/webhooks/harbor", content=chunks), 413, "1000 bytes")
        refused(receiver.client.post("/webhooks/harbor", content=b"x" * 1000), 401, "not signed")


def test_a_body_that_comes_too_slowly_is_not_waited_for(prefect: None, tmp_path: Path) -> None:
    with Receiver(tmp_path, Limits(body=0.3)) as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port)) as slow:
            slow.sendall(b"POST /webhooks/harbor HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            began = time.monotonic()
            said = b"".join(iter(lambda: slow.recv(4096), b""))
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive in 0.3 s" in said
        assert time.monotonic() - began < 3


def drip(slow: socket.socket) -> None:
    """A byte of a header now and then, for five seconds."""
    for _ in range(100):
        slow.sendall(b"X")
        time.sleep(0.05)


def test_headers_that_come_too_slowly_are_not_waited_for(prefect: None, tmp_path: Path) -> None:
    with (
        Receiver(tmp_path, Limits(headers=0.3)) as receiver,
        socket.create_connection(("127.0.0.1", receiver.port)) as slow,
    ):
        for _ in range(2):  # also those of a second request
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            time.sleep(0.1)
            slow.sendall(b"\r\n")
            said = b""
            while not said.endswith(b"}"):
                said += slow.recv(4096)
            assert said.startswith(b"HTTP/1.1 200 ")
        slow.sendall(b"GET /health HTTP/1.1\r\n")
        began = time.monotonic()
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            drip(slow)
        assert time.monotonic() - began < 2
        assert receiver.client.get("/health").is_success


def test_an_answer_that_takes_too_long_is_given_up(prefect: None, tmp_path: Path) -> None:
    app = Waiting("registry.example.com/")
    with Receiver(tmp_path, Limits(answer=0.001)) as receiver:
        answer = receiver.send(harbor(Pushed(app.path), receiver.secrets["harbor"]))
        refused(answer, 503, "deliver it again")
        assert answer.headers["Retry-After"] == "30"


def test_one_address_may_not_ask_too_often(prefect: None, tmp_path: Path) -> None:
    with Receiver(tmp_path, Limits(rate=20, burst=10)) as receiver:
        answers = [receiver.client.post("/webhooks/harbor") for _ in range(30)]
        counted = Counter(answer.status_code for answer in answers)
        assert set(counted) == {401, 429}
        assert 10 <= counted[401] <= 25
        refused(next(one for one in answers if one.status_code == 429), 429, "slow down")
        time.sleep(0.3)
        assert receiver.client.post("/webhooks/harbor").status_code == 401


def test_an_address_that_goes_on_asking_too_often_gets_its_share(
    prefect: None, tmp_path: Path
) -> None:
    with Receiver(tmp_path, Limits(rate=20, burst=10)) as receiver:
        counted: Counter[int] = Counter()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            counted[receiver.client.post("/webhooks/harbor").status_code] += 1
    assert set(counted) == {401, 429}
    assert counted[401] + counted[429] > 200  # a pause would give it more
    assert 35 <= counted[401] <= 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_receivers_command_ends_well_and_logs_lines_of_json(
    prefect: None, tmp_path: Path, number: signal.Signals
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.webhook", "--port", str(port)],
        cwd=ROOT,
        env=os.environ
        | {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert '"what": "listening on 127.0.0.1:' in process.stderr.readline()
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = httpx.post(
                    f"{url}/webhooks/quay?token=one-that-is-secret", trust_env=False
                )
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        refused(answer, 404, "Quay is off")
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert '"status": 404' in err
    assert "one-that-is-secret" not in err
    assert "Traceback" not in err


def test_the_receivers_command_needs_a_prefect_server(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.webhook"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "PREFECT_API_URL names none: set it" in done.stderr
    assert "Traceback" not in done.stderr
