"""A Prefect server on PostgreSQL, by Prefect's own setting."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # ships no types; comes with Prefect
import pytest

from tests.lab.host import Host
from tests.lab.postgres import postgres
from tests.lab.shop import Shop

SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


@pytest.mark.long
def test_the_history_is_in_postgresql_when_prefects_setting_says_so(
    api: Any, tmp_path: Path
) -> None:
    shop = Shop(api)
    try:
        with postgres() as database:
            host = Host(shop, tmp_path)
            host.environment |= {SETTING: database}
            with host:
                assert host.ended(host.ask("deploy")) == "Completed"
                assert host.ended(host.ask("rollback")) == "Failed"  # there is nothing kept
            states = asyncio.run(names(database.replace("+asyncpg", "")))
        assert states == {"Completed", "Failed"}
        assert not list((tmp_path / "home").glob("*.db"))
    finally:
        shop.close()


async def names(database: str) -> set[str]:
    """The names of all runs' states, read without Prefect."""
    connection = await asyncpg.connect(database)
    try:
        return {row["state_name"] for row in await connection.fetch("SELECT * FROM flow_run")}
    finally:
        await connection.close()
