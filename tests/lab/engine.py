"""The Docker engine: the one that answers, else Debian's, installed and started here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException

PID = Path("/run/nonstop-lab-dockerd.pid")
LOG = Path("/var/log/nonstop-lab-dockerd.log")
REMEDY = (
    "No Docker engine answers. Install and start one (Debian, Ubuntu: `apt-get install "
    "docker.io`; macOS, Windows: Docker Desktop), or name one in DOCKER_HOST."
)


def tell(text: str) -> None:
    """One line for whoever waits."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def connect() -> Any | None:
    """A client of the engine that answers; None when none does."""
    try:
        return docker.APIClient(version="auto", timeout=120, **docker.utils.kwargs_from_env())
    except DockerException:
        return None


def ensure_engine() -> Any:
    """A client of an engine that runs; on Debian as root one is installed and started if need be.

    Raises:
        SystemExit: with what to install.
    """
    api = connect()
    if api is not None:
        return api
    if os.environ.get("DOCKER_HOST") or os.geteuid() != 0:
        sys.exit(REMEDY)
    if shutil.which("dockerd") is None:
        if shutil.which("apt-get") is None:
            sys.exit(REMEDY)
        apt_install("docker.io")
    start()
    deadline = time.monotonic() + 60
    while (api := connect()) is None:
        if time.monotonic() > deadline:
            sys.exit(f"The Docker engine did not start within 60 s; its log is {LOG}.")
        time.sleep(0.2)
    return api


def apt_install(*packages: str) -> None:
    """Debian's packages are installed.

    Raises:
        SystemExit: this is no Debian or Ubuntu, or apt-get fails, in its words.
    """
    if shutil.which("apt-get") is None:
        sys.exit(f"There is no apt-get here to install {' '.join(packages)} with: install them.")
    tell(f"installing {' '.join(packages)} from the system's packages")
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-o", "DPkg::Lock::Timeout=300", *command],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        )
    if done.returncode != 0:
        sys.exit(f"apt-get could not install {' '.join(packages)}: {done.stderr[-500:]}")


def start() -> None:
    """The engine was started: by systemd where it runs, else in a session of its own."""
    if Path("/run/systemd/system").is_dir():
        tell("starting the Docker engine with systemd")
        subprocess.run(["systemctl", "start", "docker"], check=True)
        return
    tell(f"starting the Docker engine; its log is {LOG}")
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            ["dockerd"], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    PID.write_text(str(process.pid))


def stop() -> None:
    """The engine that `start` left running by itself has ended."""
    if not PID.exists():
        return
    pid = int(PID.read_text())
    PID.unlink()
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and command.read_bytes().startswith(b"dockerd"):
        tell("stopping the Docker engine that the lab started; its package stays installed")
        os.kill(pid, 15)
        while command.exists() and command.read_bytes():
            time.sleep(0.1)
    LOG.unlink(missing_ok=True)
