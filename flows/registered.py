"""What an inventory registered on the Prefect server: what leaves the file leaves the server."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

from flows.parts import tell

PREFIX = "nonstop_inventory_"


async def remember(file: Path, names: Iterable[str]) -> None:
    """Deployments that this inventory registered before and has no more are gone.

    A deployment that nobody runs would take pushes and `--at` all the same. What has been
    registered is in a Prefect variable, by host and file; what another inventory has stays.

    Args:
        file: the inventory.
        names: of its deployments, like `deploy/shop`.

    Raises:
        httpx.HTTPError: of Prefect's client, when its server does not answer.
    """
    host, path, now = platform.node(), str(file.resolve()), set(names)
    ours = PREFIX + hashlib.sha256(f"{host}:{path}".encode()).hexdigest()[:16]
    async with get_client() as client:
        noted = [one for one in await client.read_variables() if one.name.startswith(PREFIX)]
        before = {name for one in noted if one.name == ours for name in _deployments(one.value)}
        others = {name for one in noted if one.name != ours for name in _deployments(one.value)}
        for gone in sorted(before - others - now):
            await _remove(client, gone, file)
    value = {"host": host, "file": path, "deployments": sorted(now)}
    await Variable.aset(ours, value, overwrite=True)


async def _remove(client: PrefectClient, name: str, file: Path) -> None:
    try:
        found = await client.read_deployment_by_name(name)
        await client.delete_deployment(found.id)
    except ObjectNotFound:
        return  # somebody else removed it
    tell(f"removed the deployment {name}, which {file} has no more, and what waited for it")


def _deployments(value: Any) -> list[str]:
    """Of a variable of ours, which anybody may have changed in the UI."""
    found = value.get("deployments") if isinstance(value, dict) else None
    return [str(one) for one in found] if isinstance(found, list) else []
