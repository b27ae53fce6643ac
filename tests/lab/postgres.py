"""A PostgreSQL server of the tests' own: Debian's, with a cluster in a temporary directory."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.engine import apt_install
from tests.lab.shop import free_port


@contextmanager
def postgres() -> Iterator[str]:
    """The address of an empty database, in SQLAlchemy's form, while entered."""
    programs = Path("/usr/lib/postgresql")
    if not any(programs.glob("*/bin/initdb")):
        apt_install("postgresql")
    bin_ = max(programs.glob("*/bin"), key=lambda path: float(path.parent.name))
    with tempfile.TemporaryDirectory(prefix="nonstop-lab-postgres-") as folder:
        shutil.chown(folder, "postgres", "postgres")
        data, port = Path(folder) / "data", free_port()

        def run(program: str, *arguments: str) -> None:
            """As the user postgres: it refuses to run as root."""
            command = [str(bin_ / program), "-D", str(data), *arguments]
            subprocess.run(command, user="postgres", cwd=folder, check=True, timeout=60)

        run("initdb", "--auth=trust", "--no-sync", "--username=prefect")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
