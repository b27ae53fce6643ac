"""Pushes in a file: what was answered is not lost with the receiver, and known again after it."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from tasks.bluegreen.errors import Unavailable

REMEMBERED = 20_000  # pushes whose run is known
LONGEST = 7 * 86400.0  # seconds that one is kept for a server that does not take it
PATIENCE = 2.0  # seconds that another process may have the file locked

LOG = logging.getLogger("nonstop.webhook")

TABLE = """
CREATE TABLE IF NOT EXISTS pushes (
    id TEXT PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    app TEXT NOT NULL,
    deployment TEXT NOT NULL,
    at REAL,
    fields TEXT NOT NULL,
    run TEXT,
    newer INTEGER NOT NULL DEFAULT 0,
    kept REAL NOT NULL
)
"""
COLUMNS = "id, key, app, deployment, at, fields, run, newer"


class Kept(NamedTuple):
    """A proven push that an app waits for."""

    id: str
    """In the address that leads to its run."""
    key: str
    """By which the server makes one run of it, however often it is asked."""
    app: str
    deployment: UUID
    at: float | None
    """When it was pushed, in seconds since 1970; None: nobody knows, so none overtakes it."""
    fields: dict[str, Any]
    """Of the run, with its tags."""
    run: UUID | None = None
    """None: it is not on the server yet."""
    newer: bool = False
    """Whether it is the run of a newer push that came meanwhile."""


class Outbox:
    """The file. Whoever writes waits for the disk; whoever reads does not.

    Args:
        path: where it is, or is made.

    Raises:
        Unavailable: it cannot be.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writes = self._made(path)
            self._reads = self._open(path)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(
                f"Pushes cannot be kept in {path} ({error}): make it writable, move it away if it "
                "is damaged, or set PREFECT_HOME to another folder."
            ) from error

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        opened = sqlite3.connect(path, timeout=PATIENCE, check_same_thread=False)
        opened.execute("PRAGMA synchronous = FULL")
        return opened

    def _made(self, path: Path) -> sqlite3.Connection:
        opened, deadline = self._open(path), time.monotonic() + PATIENCE
        while True:
            try:
                opened.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:  # it does not wait when another one just does that
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with opened:
            opened.execute(TABLE)
            old = opened.execute(
                "DELETE FROM pushes WHERE run IS NULL AND kept < ?", (time.time() - LONGEST,)
            )
        if old.rowcount:
            LOG.warning("%d pushes that the server never took are too old now", old.rowcount)
        return opened

    def keep(self, pushes: Sequence[Kept]) -> list[Kept]:
        """They are on the disk; instead of one whose key is known, that of before.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        now = time.time()
        with self._writes as writes:
            writes.executemany(
                "INSERT OR IGNORE INTO pushes (id, key, app, deployment, at, fields, kept) "
                "VALUES (?,?,?,?,?,?,?)",
                [(*_row(push), now) for push in pushes],
            )
            return [_one(writes, "key", push.key) or push for push in pushes]

    def handed(self, pushes: Sequence[Kept]) -> None:
        """Their runs are remembered, and those of long ago no more.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        with self._writes as writes:
            writes.executemany(
                "UPDATE pushes SET run = ?, newer = ? WHERE id = ?",
                [(str(push.run), push.newer, push.id) for push in pushes],
            )
            writes.execute(
                "DELETE FROM pushes WHERE run IS NOT NULL "
                "AND rowid <= (SELECT max(rowid) FROM pushes) - ?",
                (REMEMBERED,),
            )

    def forget(self, ids: Sequence[str]) -> None:
        """The pushes of these ids are as if they had never come.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        with self._writes as writes:
            writes.executemany("DELETE FROM pushes WHERE id = ?", [(one,) for one in ids])

    def of_key(self, key: str) -> Kept | None:
        """The push of that key."""
        return _one(self._reads, "key", key)

    def of_id(self, identity: str) -> Kept | None:
        """The push of that id."""
        return _one(self._reads, "id", identity)

    def waiting(self) -> list[Kept]:
        """What is not on the server yet, as it came."""
        found = self._reads.execute(
            f"SELECT {COLUMNS} FROM pushes WHERE run IS NULL ORDER BY rowid"
        )
        return [_kept(row) for row in found]

    def close(self) -> None:
        """It is whole without us."""
        self._reads.close()
        self._writes.close()


def _one(connection: sqlite3.Connection, column: str, value: str) -> Kept | None:
    row = connection.execute(
        f"SELECT {COLUMNS} FROM pushes WHERE {column} = ?", (value,)
    ).fetchone()
    return _kept(row) if row else None


def _row(push: Kept) -> tuple[Any, ...]:
    fields = json.dumps(push.fields)
    return push.id, push.key, push.app, str(push.deployment), push.at, fields


def _kept(row: Sequence[Any]) -> Kept:
    identity, key, app, deployment, at, fields, run, newer = row
    return Kept(
        id=identity,
        key=key,
        app=app,
        deployment=UUID(deployment),
        at=at,
        fields=json.loads(fields),
        run=UUID(run) if run else None,
        newer=bool(newer),
    )
