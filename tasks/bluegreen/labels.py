"""Releases as labels on containers: Docker is the only place where they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import Unavailable
from tasks.bluegreen.model import Plan, Release, Replica

PULLED = {"yes": True, "no": False}  # releases of earlier versions do not say it


def labels_of(plan: Plan, index: int, *, pulled: bool) -> dict[str, str]:
    """What a replica of green says of itself; index 1 is the first."""
    app = plan.app
    return {
        "nonstop.app": app.name,
        "nonstop.release": str(plan.green),
        "nonstop.origin": str(plan.origin),
        "nonstop.replica": str(index),
        "nonstop.run": plan.run,
        "nonstop.image": app.image,
        "nonstop.pulled": "yes" if pulled else "no",
        "nonstop.settings": app.model_dump_json(exclude_defaults=True),
    }


def config(seen: Mapping[str, Any], field: str) -> Any:
    """A field of a container's or an image's Config; None: empty, which engines may leave out."""
    return (seen.get("Config") or {}).get(field)


def joined(seen: Mapping[str, Any]) -> dict[str, Any]:
    """A container's ends by their network's name."""
    return (seen.get("NetworkSettings") or {}).get("Networks") or {}


def read_replica(seen: dict[str, Any]) -> Replica:
    """A container of ours as the engine describes it."""
    labels, state = config(seen, "Labels"), seen["State"]
    end = joined(seen).get(seen["HostConfig"]["NetworkMode"]) or {}
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
        pulled=PULLED.get(labels.get("nonstop.pulled", "")),
        settings=settings,
        replicas=tuple(sorted((r for r, _ in replicas), key=lambda replica: replica.index)),
    )
