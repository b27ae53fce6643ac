"""The way in without our receiver: an event of Prefect's own, as in prefect.yaml and the README."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun

from tests.test_prefect_yaml import ROOT, deployment, prefect_command


def test_the_event_of_prefect_yaml_deploys_the_image_that_it_names(
    prefect: None, tmp_path: Path
) -> None:
    content: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pool = f"events-{os.getpid()}"
    prefect_command(ROOT, "work-pool", "create", pool, "--type", "process")
    content["pull"][0]["prefect.deployments.steps.set_working_directory"]["directory"] = str(ROOT)
    entry = content["deployments"][0] | {"name": "by-event", "work_pool": {"name": pool}}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(content | {"deployments": [entry]}))
    prefect_command(tmp_path, "deploy", "--all")
    id_ = deployment("deploy", "by-event")["id"]
    image = "bithavoc/hello-world-env:2"
    for resource in ("image.other", "image.hello"):
        payload = json.dumps({"image": image})
        prefect_command(
            ROOT, "event", "emit", "image.pushed", "--resource-id", resource, "--payload", payload
        )
    runs: list[FlowRun] = []
    deadline = time.monotonic() + 60
    while not runs:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[id_]))
            )
    assert [run.parameters["image"] for run in runs] == [image]
