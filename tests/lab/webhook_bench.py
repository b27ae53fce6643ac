"""How fast deliveries are answered: `python -m tests.lab.webhook_bench`, the receiver apart."""

from __future__ import annotations

import asyncio
import os
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


async def asked(url: str, make: Callable[[int], Signed], rate: float, seconds: float) -> str:
    """Deliveries at that rate, each on time, whatever the others take."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

        async def one(number: int) -> None:
            signed = make(number)
            began = time.perf_counter()
            answer = await client.post(
                f"/webhooks/{signed.sender}", content=signed.body, headers=signed.headers
            )
            took.append(time.perf_counter() - began)
            statuses[answer.status_code] += 1

        began = time.perf_counter()
        tasks = []
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)
    took.sort()
    middle, most = took[len(took) // 2] * 1000, took[int(len(took) * 0.95)] * 1000
    return f"median {middle:6.1f} ms, 95 % {most:7.1f} ms, {dict(statuses)}"


def main() -> None:
    """Prints a line for each kind of delivery."""
    with prefect_of_its_own(), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "github").write_text(SECRET)
        app, silent, port = Waiting("ghcr.io/"), Waiting("ghcr.io/", tags=None), free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), SECRETS: folder}
        receiver = subprocess.Popen(
            [sys.executable, "-m", "flows.webhook", "--port", str(port)],
            cwd=ROOT,
            env=os.environ | environment,
            stderr=subprocess.DEVNULL,
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
            kinds: list[tuple[str, Callable[[int], Signed], float, float]] = [
                ("forged", lambda _: forged, 200, 10),
                ("delivered again", lambda _: known, 200, 10),
                ("nobody waits for it", lambda _: other, 200, 10),
                ("one new in 40, else again", lambda n: known if n % 40 else new(n), 200, 10),
                ("new pushes of one app", lambda n: new(10_000 + n), 5, 10),
                ("new pushes of one app", lambda n: new(20_000 + n), 20, 10),
                ("new pushes of one app", lambda n: new(30_000 + n), 200, 3),
            ]
            for name, make, rate, seconds in kinds:
                line = asyncio.run(asked(url, make, rate, seconds))
                print(f"{name:26} {rate:3.0f}/s: {line}", flush=True)
                time.sleep(2)
        finally:
            receiver.terminate()
            receiver.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
