"""A Docker registry of the tests' own: Debian's, on a port of 127.0.0.1 that engines trust."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.lab.engine import apt_install
from tests.lab.machine import Machine
from tests.lab.shop import free_port

USER, PASSWORD = "tester", "open-sesame"
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuutXu9KzOt.1yBoZUeFWoT/914/JfszCO\n"  # of PASSWORD
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
STARTUP = 60.0


class Registry:
    """Serves while it is entered; `stop` and `start` in between keep its port and images.

    Args:
        api: client of the engine from which images are pushed.
        private: only USER with PASSWORD may pull and push.
        notify: address and bearer token that it tells of every push.
        machine: where it runs; by default here.
    """

    def __init__(
        self,
        api: Any,
        *,
        private: bool = False,
        notify: tuple[str, str] | None = None,
        machine: Machine | None = None,
    ) -> None:
        self.api, self.private, self.notify, self.machine = api, private, notify, machine
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.label = f"nonstop.lab.registry={self.address}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Registry:
        if shutil.which("docker-registry") is None:
            apt_install("docker-registry")
        self.folder = tempfile.TemporaryDirectory(prefix="nonstop-lab-registry-")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.forget()
        self.folder.cleanup()

    def start(self) -> None:
        """It answers."""
        folder = Path(self.folder.name)
        settings: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
            "http": {"addr": self.address if self.machine is None else f":{self.port}"},
        }
        if self.private:
            (folder / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "lab", "path": str(folder / "htpasswd")}}
        if self.notify:
            url, token = self.notify
            endpoint = {
                "name": "nonstop",
                "url": url,
                "headers": {"Authorization": [f"Bearer {token}"]},
                "timeout": "5s",
                "threshold": 3,
                "backoff": "1s",
            }
            settings["notifications"] = {"endpoints": [endpoint]}
        config = folder / "config.yml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        command = ["docker-registry", "serve", str(config)]
        if self.machine is not None:
            command = [*self.machine.within, *command]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTUP
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no registry: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Nobody answers at its address."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def build(self, release: str, repository: str = "", size: int = 0) -> str:
        """An image on the host only, whose replicas call themselves `release`; its reference.

        It has `size` MiB more than nonstop-lab-hello:v1.
        """
        repository = repository or f"{self.address}/local"
        made = self.api.create_container(
            "nonstop-lab-hello:v1", labels={"nonstop.lab.shop": self.address}
        )
        if size:
            self.api.start(made["Id"])
            more = ["dd", "if=/dev/zero", "of=/var/tmp/more", "bs=1M", f"count={size}"]
            self.api.exec_start(self.api.exec_create(made["Id"], more))
        changes = [f"ENV RELEASE={release}", f"LABEL {self.label}"]
        self.api.commit(made["Id"], repository=repository, tag=release, changes=changes)
        self.api.remove_container(made["Id"], force=True)
        return f"{repository}:{release}"

    def push(self, release: str, size: int = 0) -> str:
        """An image like those of `build`, but in the registry only; its reference."""
        repository = f"{self.address}/shop"
        image = self.build(release, repository, size)
        user = {"username": USER, "password": PASSWORD}
        for line in self.api.push(repository, release, stream=True, decode=True, auth_config=user):
            assert "error" not in line, line
        self.api.remove_image(image)
        return image

    def move(self, tag: str, release: str) -> str:
        """`tag` means the image pushed as `release` from now on; the host is not told.

        Returns:
            The reference with that tag.
        """
        manifest = self._client().get(f"manifests/{release}", headers={"Accept": MANIFEST})
        moved = self._client().put(
            f"manifests/{tag}", content=manifest.content, headers={"Content-Type": MANIFEST}
        )
        moved.raise_for_status()
        return f"{self.address}/shop:{tag}"

    def digest(self, tag: str) -> str:
        """Of the image that `tag` means now."""
        answer = self._client().head(f"manifests/{tag}", headers={"Accept": MANIFEST})
        return answer.headers["Docker-Content-Digest"]

    def forget(self) -> None:
        """The engine has none of its images."""
        for image in self.api.images(filters={"label": self.label}):
            self.api.remove_image(image["Id"], force=True)

    def on_host(self) -> int:
        """Number of its images that the engine has."""
        return len(self.api.images(filters={"label": self.label}))

    def _client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://{self.address}/v2/shop", auth=(USER, PASSWORD), trust_env=False
        )

    def _answers(self) -> bool:
        host = "127.0.0.1" if self.machine is None else self.machine.address
        url = f"http://{host}:{self.port}/v2/"
        try:
            return httpx.get(url, timeout=5, trust_env=False) is not None
        except httpx.TransportError:
            return False


def credentials(registry: Registry, folder: Path, password: str = PASSWORD) -> str:
    """A Docker configuration with which its user is logged in; the value for DOCKER_CONFIG."""
    login = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    return str(folder)
