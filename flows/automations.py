"""Prefect's automations of ours: dead runs are found and followed by recover, failures are told.

They are created when they are missing, changed when they differ, and otherwise left alone: a
change would forget the runs that are being watched.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import (
    AutomationCore,
    ChangeFlowRunState,
    EventTrigger,
    Posture,
    RunDeployment,
    SendNotification,
)
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY

from flows.names import ENDS
from tasks.bluegreen.errors import BadInput

DEPLOYS = ["deploy", "rollback"]
RECOVER = "recover"  # the flow's name, and the deployment's
FLOWS = [*DEPLOYS, RECOVER]
BEATS = 3  # that are missing when a run is taken for dead
WAITS_AGAIN = "Scheduled"  # a run that its runner put off has no process and is not dead
SILENCE = 90  # seconds; longer where heartbeats come less often than every 30 s
APP = "{{ (flow_run.parameters.app.name or flow_run.parameters.app) }}"
WHOSE = '{{ (flow_run.parameters.app.name or flow_run.parameters.app or "all apps") }}'
NAMES = SILENT, CRASHED, TOLD = (
    "nonstop: a silent run has crashed",
    "nonstop: recover after a crash",
    "nonstop: tell of failures",
)


def ensure_automations(notify: str | None = None) -> None:
    """The server has each automation of ours once, as it is described here.

    Without a deployment named `recover` there is none that starts it; without `notify`, the
    TYPE/NAME of a notification block, none that tells of failures.

    Raises:
        BadInput: there is no such block.
    """
    with get_client(sync_client=True) as client:
        block, recover = _block(client, notify), _recover(client)
        automations = [_silent()]
        if recover:
            automations.append(_crashed(recover))
        if block:
            automations.append(_told(block))
        for name in NAMES:
            wanted = next((one for one in automations if one.name == name), None)
            _ensure(client, name, wanted)


def _ensure(client: SyncPrefectClient, name: str, wanted: AutomationCore | None) -> None:
    """There is exactly this automation of that name; or none, if none is wanted."""
    there = client.read_automations_by_name(name)
    for double in there[1 if wanted else 0 :]:
        client.delete_automation(double.id)
    if wanted and not there:
        client.create_automation(wanted)
    elif wanted and _content(there[0]) != _content(wanted):
        client.update_automation(there[0].id, wanted)


def _content(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does; whether it is paused is left to whoever paused it in the UI."""
    return automation.model_dump(include={"description", "trigger", "actions"})


def _silent() -> AutomationCore:
    seconds = max(SILENCE, BEATS * (PREFECT_FLOWS_HEARTBEAT_FREQUENCY.value() or 0))
    return AutomationCore(
        name=SILENT,
        description=f"A run of ours without a heartbeat for {seconds:g} s has died.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_of(FLOWS),
            after={"prefect.flow-run.heartbeat"},
            expect={f"prefect.flow-run.{name}" for name in ("heartbeat", WAITS_AGAIN, *ENDS)},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {seconds:g} s: its process is taken for dead.",
            )
        ],
    )


def _crashed(recover: UUID) -> AutomationCore:
    return AutomationCore(
        name=CRASHED,
        description="What a crashed deploy or rollback left is finished or undone.",
        trigger=_ended(DEPLOYS, "CRASHED"),  # a recover that crashes is followed by the next
        actions=[RunDeployment(deployment_id=recover, parameters={"app": APP, "wait": SILENCE})],
    )


def _told(block: UUID) -> AutomationCore:
    return AutomationCore(
        name=TOLD,
        description="A run of ours that failed or crashed is told: app, reason and link.",
        trigger=_ended(FLOWS, "FAILED", "CRASHED"),
        actions=[
            SendNotification(
                block_document_id=block,
                subject=f"{{{{ flow.name }}}} of {WHOSE}: {{{{ flow_run.state.name }}}}",
                body="{{ flow_run.state.message }}\n{{ flow_run | ui_url }}",
            )
        ],
    )


def _ended(flows: list[str], *types: str) -> EventTrigger:
    """At once, when a run of these flows comes into a state of one of these types."""
    return EventTrigger(
        posture=Posture.Reactive,
        match=ResourceSpecification(
            {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": list(types)}
        ),
        match_related=_of(flows),
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        threshold=1,
    )


def _of(flows: list[str]) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": flows})


def _block(client: SyncPrefectClient, notify: str | None) -> UUID | None:
    if notify is None:
        return None
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, kind, include_secrets=False).id
    except ObjectNotFound:
        raise BadInput(
            f"The Prefect server has no block {notify} to notify with: create it in the UI under "
            "Blocks, and name it as TYPE/NAME, like slack-webhook/team."
        ) from None


def _recover(client: SyncPrefectClient) -> UUID | None:
    named = DeploymentFilter(name=DeploymentFilterName(any_=[RECOVER]))
    found = client.read_deployments(deployment_filter=named)
    return found[0].id if found else None
