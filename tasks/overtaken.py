"""overtaken: a run that a push asked for gives way to the run of a newer push."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from tasks.bluegreen.errors import Superseded, Unavailable

PUSH = "push"  # tag of runs that pushes asked for
PUSHED = "nonstop.pushed"  # label: when it was pushed, in seconds since 1970
SUPERSEDED = "Superseded"  # name of the state in which an overtaken run ends
RECENT = 25  # runs that are looked at; pushes that come out of order come soon after each other


def ensure_newest() -> None:
    """No newer push of the app has asked for a run; runs that no push asked for always pass.

    Raises:
        Superseded: one has.
        Unavailable: the Prefect server, which knows, does not answer.
    """
    if PUSH not in flow_run.tags:
        return
    try:
        newer = _newer()
    except (httpx.HTTPError, PrefectException) as error:
        raise Unavailable(
            f"Whether a newer push asked for a run cannot be known, the Prefect server does not "
            f"answer ({error}): run it again once it does. Nothing was touched."
        ) from error
    if newer:
        raise Superseded(newer)


def _newer() -> str | None:
    with get_client(sync_client=True) as client:
        mine = client.read_flow_run(UUID(str(flow_run.id)))
        if PUSHED not in mine.labels or mine.deployment_id is None:
            return None
        newest = max(
            client.read_flow_runs(
                flow_run_filter=pushed(mine.deployment_id),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=RECENT,
            ),
            key=age,
            default=mine,
        )
    return why(newest) if age(newest) > age(mine) else None


def pushed(deployment: UUID) -> FlowRunFilter:
    """The runs of a deployment that pushes asked for, without those that gave way.

    All that wait for one opening are due at one time, and only so many are looked at.
    """
    return FlowRunFilter(
        state=FlowRunFilterState(name=FlowRunFilterStateName(not_any_=[SUPERSEDED])),
        tags=FlowRunFilterTags(all_=[PUSH]),
        deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
    )


def age(run: FlowRun) -> tuple[float, float]:
    """Sorts such runs by when they were pushed, and equal ones by when they were asked for."""
    asked = run.created.timestamp() if run.created else 0.0
    label = run.labels.get(PUSHED)
    return float(label) if isinstance(label, int | float) else asked, asked


def why(newest: FlowRun) -> str:
    """Why a run gives way to this one."""
    when = datetime.fromtimestamp(age(newest)[0], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    image = newest.parameters.get("image")
    return f"A newer push of {image} ({when}) asked for run {newest.name}. Nothing was touched."
