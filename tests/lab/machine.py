"""A host of the tests' own: an engine in a network namespace, which may be hurt and rebooted.

The engine that the other tests use, perhaps the user's own, is never stopped or filled.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException

from tests.lab.engine import apt_install

STARTUP = 60.0
SUBNET = "10.197.53"  # between the machine and this one


def run(*command: str | Path) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Machine:
    """Runs while it is entered.

    Args:
        folder: for the engine's socket and log.
        live_restore: whether containers survive a restart of the engine.
        disk: size of the disk with images and containers, like 600m; empty: no disk of its own.
    """

    def __init__(self, folder: Path, *, live_restore: bool = False, disk: str = "") -> None:
        self.name = f"nonstop-lab-{os.getpid()}"
        self.folder, self.live_restore, self.disk = folder, live_restore, disk
        self.data = Path("/var/lib") / self.name  # a test's folder may be on no disk for images
        self.state = Path("/run") / self.name
        self.url = f"unix://{self.state}/docker.sock"
        self.address = f"{SUBNET}.2"
        self.within = ("nsenter", f"--net=/run/netns/{self.name}")  # before a command
        self.api: Any = docker.APIClient(base_url=self.url, version="1.40", timeout=120)

    def __enter__(self) -> Machine:
        if shutil.which("ip") is None:
            apt_install("iproute2")
        run("ip", "netns", "add", self.name)
        inside = ("ip", "-n", self.name)
        run("ip", "link", "add", "nslab0", "type", "veth", "peer", "nslab1", "netns", self.name)
        run("ip", "address", "add", f"{SUBNET}.1/30", "dev", "nslab0")
        run("ip", "link", "set", "nslab0", "up")
        run(*inside, "address", "add", f"{self.address}/30", "dev", "nslab1")
        run(*inside, "link", "set", "nslab1", "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "route", "add", "default", "via", f"{SUBNET}.1")
        self.data.mkdir()
        self.state.mkdir()
        if self.disk:
            run("mount", "-t", "tmpfs", "-o", f"size={self.disk}", "tmpfs", self.data)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        sweep(self.name)
        self.process.wait(60)
        self.containerd.wait(60)

    def start(self) -> None:
        """The engine answers; its containerd is apart, as distributions have it."""
        containerd, socket = self.folder / "containerd.toml", self.state / "containerd.sock"
        if not socket.exists():
            containerd.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
            self.containerd = self._begin(
                *("containerd", "--config", containerd, "--address", socket),
                *("--root", self.data / "containerd", "--state", self.state / "containerd"),
            )
        config = self.folder / "daemon.json"
        config.write_text(json.dumps({"live-restore": self.live_restore}))
        self.process = self._begin(
            *("dockerd", "--config-file", config, "--host", self.url, "--containerd", socket),
            *("--data-root", self.data, "--exec-root", self.state),
            *("--pidfile", self.state / "docker.pid"),
        )
        deadline = time.monotonic() + STARTUP
        while not self.answers():
            written = self.folder / "log"
            assert self.process.poll() is None, written.read_text()[-500:]
            assert time.monotonic() < deadline, "the machine's engine does not answer"
            time.sleep(0.1)

    def _begin(self, *command: str | Path) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(part) for part in (*self.within, *command)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def answers(self) -> bool:
        """Whether the engine answers."""
        try:
            return bool(self.api.ping())
        except (DockerException, requests.RequestException):
            return False

    def stop(self, number: signal.Signals) -> None:
        """The engine has ended; with SIGKILL as by a crash."""
        self.process.send_signal(number)
        self.process.wait(60)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """The engine was restarted; its containers are as its configuration leaves them."""
        self.stop(number)
        self.start()

    def reboot(self) -> None:
        """Every process of the machine was killed at once, then the engine started again."""
        kill(self.name)
        self.process.wait(60)
        self.containerd.wait(60)
        shutil.rmtree(self.state)
        self.state.mkdir()
        self.start()

    def fill(self, leave: int = 0) -> None:
        """The disk has no byte left, or this many MiB."""
        with suppress(OSError), (self.data / "ballast").open("wb", buffering=0) as file:
            while not leave or shutil.disk_usage(self.data).free > leave << 20:
                file.write(bytes(1 << 16))

    def free(self) -> None:
        """It has, again."""
        (self.data / "ballast").unlink(missing_ok=True)

    def load(self, api: Any, *images: str) -> None:
        """The machine's engine has these images of another engine."""
        archive = self.folder / "images.tar"
        with archive.open("wb") as file:
            for chunk in api._stream_raw_result(
                api._get(api._url("/images/get"), params={"names": images}, stream=True),
                1 << 20,
                decode=False,
            ):
                file.write(chunk)
        with archive.open("rb") as file:
            for line in self.api.load_image(file):  # it is done when all is said
                assert "error" not in line, line
        archive.unlink()


def sweep(name: str) -> None:
    """Nothing is left of the machine of that name, also of one whose test was killed."""
    kill(name)
    for command in (("netns", "delete", name), ("link", "delete", "nslab0")):
        subprocess.run(["ip", *command], capture_output=True, check=False)
    unmount(f"/var/lib/{name}")  # by us, or by the engine itself
    for place in (Path("/var/lib") / name, Path("/run") / name):
        shutil.rmtree(place, ignore_errors=True)


def kill(name: str) -> None:
    """No process or mount of the machine is left; its disk, where it has one, stays mounted."""
    while pids := processes(f"/run/{name}/"):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    unmount(f"/var/lib/{name}/")
    unmount(f"/run/{name}/")


def unmount(prefix: str) -> None:
    """Nothing is mounted at a place that starts so."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed(places):
        if place.startswith(prefix):
            run("umount", "--lazy", place)


def processes(place: str) -> set[int]:
    """Ids of the processes that name this place in their command, and of all they have started."""
    every = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = {pid for pid in every if place in command_line(pid)} - {os.getpid()}
    while more := {pid for pid in every if parent(pid) in found} - found:
        found |= more
    return found


def command_line(pid: int) -> str:
    """A process's command; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parent(pid: int) -> int:
    """A process's parent; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
