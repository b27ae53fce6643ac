"""What runs are called in Prefect: what is done, to which app, with which image or release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import httpx
from prefect.runtime import flow_run

from flows.server import briefly, once_free
from tasks.bluegreen.app import IMAGE, NAME
from tasks.overtaken import SUPERSEDED

UNCHANGED, POSTPONED, REFUSED, UNKNOWN = "Unchanged", "Postponed", "Refused", "Unknown"
# Names of every state in which a run of ours may end, Prefect's own and ours.
ENDS = (
    *("Completed", "Failed", "Crashed", "Cancelled", "TimedOut", "Suspended"),
    *(UNCHANGED, POSTPONED, SUPERSEDED, REFUSED, UNKNOWN),
)


def deploy_name() -> str:
    """Like `deploy shop registry.example.com/shop:1.5`."""
    return name_of(flow_run.parameters)


def name_of(deploy: Mapping[str, Any]) -> str:
    """The same of a deploy with these parameters that has yet to start."""
    app = deploy.get("app")
    image = deploy.get("image") or _of(app, "image")
    return " ".join(part for part in ("deploy", app_name(app), image) if part)


def rollback_name() -> str:
    """Like `rollback shop`, or `rollback shop to 41`."""
    given = flow_run.parameters
    to = given.get("to")
    return f"rollback {app_name(given.get('app'))}".rstrip() + (f" to {to}" if to else "")


def rename(name: str) -> None:
    """The run is called so from now on; a server that is away costs the name, never the deploy."""
    with suppress(httpx.HTTPError), briefly() as client:
        once_free(partial(client.update_flow_run, UUID(str(flow_run.id)), name=name))


def command() -> str:
    """What asks for the same on the command line."""
    given = flow_run.parameters
    image, to = given.get("image") or "", given.get("to")
    words = ["nonstop", str(flow_run.flow_name), app_name(given.get("app"))]
    words += ["--image", image] if IMAGE.fullmatch(str(image)) else []
    words += ["--to", str(to)] if to else []
    return " ".join(filter(None, words))


def recover_name() -> str:
    """Like `recover shop`; or `recover`, of all apps."""
    return f"recover {app_name(flow_run.parameters.get('app'))}".rstrip()


def app_name(app: Any) -> str:
    """Of an app as a run was given it, whether the rest is right or not; empty: it has none."""
    name = app if isinstance(app, str) else _of(app, "name")
    return name if re.fullmatch(NAME, name) else ""


def _of(app: Any, field: str) -> str:
    value = app.get(field) if isinstance(app, dict) else getattr(app, field, "")
    return value if isinstance(value, str) else ""
