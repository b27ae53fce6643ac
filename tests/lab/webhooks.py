"""A receiver on a real socket, and deployments on the tests' Prefect server for it to run."""

from __future__ import annotations

import contextvars
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import httpx
import uvicorn
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deploy import deploy
from flows.inventory import ENTRYPOINT
from flows.pushes.guard import Limits, settings
from flows.pushes.outbox import Outbox
from flows.pushes.senders import SECRETS, SENDERS
from flows.webhook import ONCE, create_app
from tasks.overtaken import age, pushed
from tests.lab.deliveries import Signed
from tests.lab.shop import free_port

ROOT = Path(__file__).parents[2]
IN_ROOT = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
NUMBERS = itertools.count(1)
KEPT = "pushes.db"


class Receiver:
    """The receiver while entered; each sender has a secret of its own, in a file."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.secrets = {sender.name: f"{sender.name}-{'s3cret' * 4}" for sender in SENDERS}
        for name, secret in self.secrets.items():
            (folder / name).write_text(f"{secret}\n")
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self.limits = limits or Limits()

    def __enter__(self) -> Receiver:
        os.environ[SECRETS] = str(self.folder)
        app = create_app(Outbox(self.folder / KEPT), self.limits, fresh=0)
        config = uvicorn.Config(app, port=self.port, **settings(self.limits))
        self.server = uvicorn.Server(config)
        with temporary_settings(ONCE):
            within = contextvars.copy_context()  # has the settings of the tests' Prefect server
        self.thread = threading.Thread(target=within.run, args=(self.server.run,))
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        del os.environ[SECRETS]
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()

    def send(self, signed: Signed) -> httpx.Response:
        """The receiver's answer."""
        return self.client.post(
            f"/webhooks/{signed.sender}",
            content=signed.body,
            headers=signed.headers,
            params=signed.query,
        )

    def run(self, answer: httpx.Response) -> dict[str, Any]:
        """The only run of an answer, once it is on the Prefect server."""
        assert answer.status_code == 202, answer.text
        (run,) = answer.json()["runs"]
        deadline = time.monotonic() + 60
        while run["run"] is None:
            assert time.monotonic() < deadline, run
            assert run["address"].startswith("/webhooks/pushes/")
            looked = self.client.get(run["address"])
            run = looked.json()
            assert looked.status_code == (303 if run["run"] else 202), looked.text
            assert looked.headers.get("Location", run["address"]) == run["address"]
        assert run["address"].endswith(f"/{run['run']}")
        return dict(run)


class Waiting:
    """An app that is deployed by pushes; nobody runs its runs, unless a worker of `pool` does.

    Args:
        registry: where its image is.
        tags: of the pushes that it waits for; None: of none.
        pool: whose worker runs it.
        schema: whether the server looks at parameters, as it does for what `nonstop up` registers.
        app: fields of the app; None: without that one.
    """

    made: ClassVar[list[UUID]] = []

    @classmethod
    def remove_all(cls) -> None:
        """No run waits: hundreds that are late keep the server's SQLite busy for other tests."""
        while cls.made:
            with get_client(sync_client=True) as client:
                client.delete_deployment(cls.made.pop())

    def __init__(
        self,
        registry: str = "",
        tags: str | None = "*",
        pool: str | None = None,
        *,
        schema: bool = False,
        **app: Any,
    ) -> None:
        number = next(NUMBERS)
        self.name = f"waits-{os.getpid()}-{number}"
        self.path = f"Team/{self.name}" if registry == "ghcr.io/" else f"team/{self.name}"
        self.image = registry + self.path.lower()
        described: dict[str, Any] = {
            "name": self.name,
            "image": f"{self.image}:1.0",
            "port": 80,
        } | app
        described["deploy_on_push"] = tags
        with get_client(sync_client=True) as client:
            self.deployment = client.create_deployment(
                client.create_flow(deploy),
                self.name,
                entrypoint=ENTRYPOINT,
                parameters={"app": {k: v for k, v in described.items() if v is not None}},
                parameter_openapi_schema=deploy.parameters.model_dump() if schema else None,
                enforce_parameter_schema=schema,
                work_pool_name=pool,
                pull_steps=[IN_ROOT],
            )
        self.made.append(self.deployment)

    def leave(self) -> None:
        """It is on the server no more."""
        self.made.remove(self.deployment)
        with get_client(sync_client=True) as client:
            client.delete_deployment(self.deployment)

    def runs(self) -> list[FlowRun]:
        """Those that pushes asked for, oldest push first."""
        with get_client(sync_client=True) as client:
            those = pushed(self.deployment).model_copy(update={"state": None})
            found = client.read_flow_runs(flow_run_filter=those)
        return sorted(found, key=age)

    def states(self) -> dict[str, str]:
        """Name of the state of each run, by the image's tag."""
        return {
            str(run.parameters["image"]).split("@")[0].rpartition(":")[2]: str(run.state_name)
            for run in self.runs()
        }

    def settled(self, states: dict[str, str]) -> None:
        """Waits until the runs have these states, by tags."""
        deadline = time.monotonic() + 20
        while self.states() != states:
            assert time.monotonic() < deadline, f"{self.states()} instead of {states}"
            time.sleep(0.05)


@contextmanager
def worker(pool: str) -> Iterator[None]:
    """Within, runs of that pool are run, in processes of their own."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    running = subprocess.Popen(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
        cwd=ROOT,
        env=os.environ
        | {
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


def refused(answer: httpx.Response, status: int, words: str) -> None:
    """In a sentence of ours, and nothing else."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["message"]
    assert words in answer.json()["message"]


def ignored(answer: httpx.Response, words: str) -> None:
    """Well received, and no run is asked for, in a sentence."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["outcome"] == "ignored"
    assert words in answer.json()["message"]
