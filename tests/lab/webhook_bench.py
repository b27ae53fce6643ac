"""How fast deliveries are answered: `python -m tests.lab.webhook_bench`, the receiver apart."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_URL

from flows.pushes.senders import SECRETS
from tests.lab.deliveries import Pushed, Signed, github
from tests.lab.server import prefect_of_its_own
from tests.lab.shop import free_port
from tests.lab.webhooks import ROOT, Waiting

SECRET = "bench-" + "s3cret" * 4


async def asked(port: int, deliveries: list[Signed], rate: float) -> str:
    """Deliveries at that rate, each on time and by a connection of its own."""
    took: list[float] = []
    statuses: Counter[int] = Counter()

    async def one(request: bytes) -> None:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()  # to the end
        writer.close()
        took.append(time.perf_counter() - began)
        statuses[int(answer.split(b" ", 2)[1])] += 1

    requests = [_request(signed) for signed in deliveries]
    began = time.perf_counter()
    tasks = []
    for number, request in enumerate(requests):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(request)))
    await asyncio.gather(*tasks)
    took.sort()
    middle, most = took[len(took) // 2] * 1000, took[int(len(took) * 0.95)] * 1000
    return f"median {middle:6.1f} ms, 95 % {most:7.1f} ms, {dict(statuses)}"


def _request(signed: Signed) -> bytes:
    """As the sender writes it; an HTTP client of Python's costs more than the receiver itself."""
    headers = signed.headers | {
        "Host": "127.0.0.1",
        "Connection": "close",
        "Content-Length": str(len(signed.body)),
    }
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"POST /webhooks/{signed.sender} HTTP/1.1\r\n{''.join(lines)}\r\n"
    return head.encode() + signed.body


def main() -> None:
    """Prints a line for each kind of delivery."""
    with prefect_of_its_own(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "github").write_text(SECRET)
        app, silent, port = Waiting("ghcr.io/"), Waiting("ghcr.io/", tags=None), free_port()
        many = [Waiting("ghcr.io/") for _ in range(40)]
        url = f"http://127.0.0.1:{port}"
        environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), SECRETS: folder}
        environment["PREFECT_HOME"] = folder  # where pushes are kept
        receiver = subprocess.Popen(
            [sys.executable, "-m", "flows.webhook", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=(Path(folder) / "log").open("wb"),
        )
        try:
            while not _answers(url):
                time.sleep(0.1)
            now = time.time()
            known, other = github(Pushed(app.path), SECRET), github(Pushed(silent.path), SECRET)
            forged = github(Pushed(app.path), SECRET[1:])

            def new(number: int) -> Signed:
                return github(Pushed(app.path, at=now + number / 1e4), SECRET)

            print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
            print(f"floor, a run made on the Prefect server and nothing else: {_floor(app)}")
            kinds: list[tuple[str, Callable[[int], Signed], float, float]] = [
                ("forged", lambda _: forged, 200, 10),
                ("delivered again", lambda _: known, 200, 10),
                ("nobody waits for it", lambda _: other, 200, 10),
                ("one new in 40, else again", lambda n: known if n % 40 else new(n), 200, 10),
                ("new pushes of one app", lambda n: new(10_000 + n), 5, 10),
                ("new pushes of one app", lambda n: new(20_000 + n), 20, 10),
                ("new pushes of one app", lambda n: new(30_000 + n), 200, 3),
                (
                    "one new of each of 40 apps",
                    lambda n: github(Pushed(many[n].path), SECRET),
                    200,
                    0.2,
                ),
            ]
            for name, make, rate, seconds in kinds:
                deliveries = [make(number) for number in range(int(rate * seconds))]
                line = asyncio.run(asked(port, deliveries, rate))
                print(f"{name:26} {rate:3.0f}/s: {line}", flush=True)
                time.sleep(2)
        finally:
            receiver.terminate()
            receiver.wait(30)
            complaints = [line for line in (Path(folder) / "log").open() if not _calm(line)]
            print(f"the receiver complained {len(complaints)} times", *complaints[:20], sep="\n")


def _floor(app: Waiting) -> str:
    """One after the other, as the receiver makes them."""
    took = []
    url = f"{PREFECT_API_URL.value()}/deployments/{app.deployment}/create_flow_run/bulk"
    with httpx.Client(timeout=60, trust_env=False) as client:
        for _ in range(40):
            began = time.perf_counter()
            client.post(url, json=[{}]).raise_for_status()
            took.append(time.perf_counter() - began)
    return f"median {statistics.median(took) * 1000:.1f} ms"


def _calm(line: str) -> bool:
    return '"level": "info"' in line or '"what": "delivery"' in line


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
