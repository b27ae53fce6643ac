"""What green has to pass: health before the cutover, visitors after it; and blue's drain."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from tasks.bluegreen.units import Decimal, Frozen, Pairs, Seconds, Whole


class Gate(Frozen):
    """What is asked of green, and which answer is right."""

    path: str = Field(default="/", pattern=r"^/[!-~]*$", description="Path that is asked for.")
    status: tuple[int, ...] = Field(
        default=(200,), min_length=1, description="Status codes that are right."
    )
    body: str = Field(default="", description="Regular expression to find in the body; or none.")
    timeout: Seconds = Field(default=5.0, gt=0, le=60, description="Seconds for one answer.")

    @field_validator("body")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


class Health(Gate):
    """When green is good enough to receive visitors: all replicas at once, several times."""

    headers: Pairs = Field(
        default={},
        description="Headers the answer must carry; values may be templates like `{{ release }}`, "
        "so that the answer proves who gave it.",
    )
    checks: Whole = Field(
        default=3, ge=1, le=100, description="Rounds in a row in which every replica is right."
    )
    interval: Seconds = Field(
        default=1.0, ge=0.05, le=60, description="Seconds between two rounds."
    )
    deadline: Seconds = Field(
        default=120.0, gt=0, le=1500, description="Seconds until green has to be healthy."
    )
    warm_up: tuple[Annotated[str, Field(pattern=r"^/[!-~]*$")], ...] = Field(
        default=(),
        description="Paths asked of every replica, in this order, before it receives visitors, so "
        "that the first of them does not meet a cold app.",
    )


class Verify(Gate):
    """How green is watched after the cutover, while blue waits warm."""

    bake_time: Seconds = Field(
        default=30.0, ge=0, le=1500, description="Seconds that green is watched."
    )
    interval: Seconds = Field(
        default=0.5, ge=0.02, le=60, description="Seconds between two requests of ours."
    )
    failures: Whole = Field(
        default=3,
        ge=1,
        description="Failures of our requests, or of visitors', before green can be bad: one blip "
        "is no reason to go back. So many of ours in a row are one, whatever their share.",
    )
    tolerance: Decimal = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Share (0 to 1) of requests that may fail beyond the share of blue's visitors.",
    )


class Drain(Frozen):
    """How blue's last requests are waited for."""

    limit: Seconds = Field(
        default=300.0,
        ge=0,
        le=3300,
        description="Seconds that requests, streams and WebSockets of blue may go on.",
    )
