"""Releases as labels on containers: Docker is the only place where they are kept."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import Unavailable
from tasks.bluegreen.model import Plan, Release, Replica


def labels_of(plan: Plan, index: int) -> dict[str, str]:
    """What a replica of green says of itself; index 1 is the first."""
    app = plan.app
    return {
        "nonstop.app": app.name,
        "nonstop.release": str(plan.green),
        "nonstop.origin": str(plan.origin),
        "nonstop.replica": str(index),
        "nonstop.run": plan.run,
        "nonstop.image": app.image,
        "nonstop.settings": app.model_dump_json(exclude_defaults=True),
    }


def read_replica(seen: dict[str, Any]) -> Replica:
    """A container of ours as the engine describes it."""
    labels, state = seen["Config"]["Labels"], seen["State"]
    end = seen["NetworkSettings"]["Networks"].get(seen["HostConfig"]["NetworkMode"]) or {}
    return Replica(
        name=seen["Name"].lstrip("/"),
        id=seen["Id"],
        app=labels["nonstop.app"],
        number=int(labels["nonstop.release"]),
        index=int(labels["nonstop.replica"]),
        address=(end.get("IPAMConfig") or {}).get("IPv4Address") or end.get("IPAddress") or "",
        status=state["Status"],
        health=(state.get("Health") or {}).get("Status", ""),
        created=seen["Created"],
        started=state["StartedAt"],
        run=labels.get("nonstop.run", ""),
        restarts=seen["RestartCount"],
        exit_code=state["ExitCode"],
        out_of_memory=state["OOMKilled"],
        image_id=seen["Image"],
    )


def read_settings(name: str, labels: dict[str, str]) -> App:
    """The App that the container of that name was deployed with.

    Raises:
        Unavailable: the labels are not of this version.
    """
    try:
        return App.model_validate(json.loads(labels["nonstop.settings"]))
    except (KeyError, ValidationError, json.JSONDecodeError) as error:
        raise Unavailable(
            f"Container {name.lstrip('/')} carries our labels but no settings that this version "
            "understands: remove it by hand if it does not serve."
        ) from error


def read_release(number: int, replicas: list[tuple[Replica, dict[str, str]]]) -> Release:
    """A release, from its replicas and their labels.

    Raises:
        Unavailable: the labels are not of this version.
    """
    labels = replicas[0][1]
    settings = read_settings(replicas[0][0].name, labels)
    return Release(
        number=number,
        origin=int(labels.get("nonstop.origin", number)),
        image=labels.get("nonstop.image", ""),
        pinned=replicas[0][0].image_id,
        settings=settings,
        replicas=tuple(sorted((r for r, _ in replicas), key=lambda replica: replica.index)),
    )
