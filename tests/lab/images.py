"""The lab's images: pulled where a registry answers, else made from Debian's packages."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import requests
from docker.errors import DockerException, ImageNotFound

from tests.lab.engine import apt_install, tell

LABEL = "nonstop.lab"
PROXY = "nonstop-lab-nginx:1"
HELLO = {  # image -> what its environment adds
    "nonstop-lab-hello:v1": {"RELEASE": "v1"},
    "nonstop-lab-hello:v2": {"RELEASE": "v2"},
    "nonstop-lab-hello:v3": {"RELEASE": "v3", "FAIL_SHARE": "0.5"},  # bad only for visitors
    "nonstop-lab-hello:v4": {"RELEASE": "v4"},
}
BASE, DEBIAN = "nonstop-lab-python:1", "nonstop-lab-debian:1"
PULLED = {BASE: "python:3.13-slim", PROXY: "nginx:1.28"}  # >= 1.27.4 for keepalive_min_timeout
ANSWER = 4  # seconds in which a registry has to answer
SUITE = "forky"  # the first Debian with nginx >= 1.28
PACKAGES = "nginx-light,curl,python3,ca-certificates"
SOURCE = Path(__file__).parent / "hello" / "hello.py"


def ensure_images(api: Any) -> None:
    """All images of the lab are on the engine; the app's are those of its present source.

    Raises:
        SystemExit: they can neither be pulled nor built, with the reason.
    """
    if not all(_labels(api, image) for image in (BASE, PROXY)):
        theirs = [image for image in PULLED.values() if _labels(api, image) is not None]
        below = PULLED if _pull(api) else _import(api)
        _build(api, BASE, [f"FROM {below[BASE]}"])
        _build(
            api,
            PROXY,
            [f"FROM {below[PROXY]}", 'CMD ["nginx", "-g", "daemon off;"]', "STOPSIGNAL SIGQUIT"],
        )
        for image in {*below.values()} - {*theirs, DEBIAN}:
            api.remove_image(image)  # only its name: ours stand on it, so it goes with them
    source = SOURCE.read_bytes()
    for image, environment in HELLO.items():
        lines = [
            f"FROM {BASE}",
            "COPY hello.py /hello.py",
            *(f"ENV {name}={value}" for name, value in environment.items()),
            'CMD ["python3", "-u", "/hello.py"]',
        ]
        digest = hashlib.sha256(source + "\n".join(lines).encode()).hexdigest()
        if (_labels(api, image) or {}).get(f"{LABEL}.content") != digest:
            _build(api, image, [*lines, f"LABEL {LABEL}.content={digest}"], source)


def remove_images(api: Any) -> None:
    """No image of the lab is left."""
    for image in api.images(filters={"label": LABEL}):
        for tag in image["RepoTags"] or []:
            if tag != "<none>:<none>":
                api.remove_image(tag, force=True)
    for image in api.images(filters={"label": LABEL}):
        api.remove_image(image["Id"], force=True)


def _labels(api: Any, image: str) -> dict[str, str] | None:
    try:
        return dict(api.inspect_image(image)["Config"]["Labels"] or {})
    except ImageNotFound:
        return None


def _pull(api: Any) -> bool:
    try:
        for image in PULLED.values():
            api.get(api._url("/distribution/{0}/json", image), timeout=ANSWER).raise_for_status()
        tell(f"pulling {', '.join(PULLED.values())}")
        for image in PULLED.values():
            api.pull(image)
    except (DockerException, requests.RequestException):
        tell(f"no registry answers within {ANSWER} s, so images are made from Debian's packages")
        return False
    return True


def _import(api: Any) -> dict[str, str]:
    if shutil.which("mmdebstrap") is None:
        apt_install("mmdebstrap", "debian-archive-keyring")
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "debian.tar"
        tell(f"building a base image from Debian {SUITE}")
        done = subprocess.run(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=apt",
                '--aptopt=Acquire::Check-Valid-Until "false"',
                f"--include={PACKAGES}",
                SUITE,
                str(tar),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"mmdebstrap could not build the base image: {done.stderr[-500:]}")
        name, _, tag = DEBIAN.partition(":")
        api.import_image_from_file(str(tar), repository=name, tag=tag, changes=[f"LABEL {LABEL}=1"])
    return dict.fromkeys((BASE, PROXY), DEBIAN)


def _build(api: Any, image: str, lines: list[str], hello: bytes = b"") -> None:
    tell(f"building {image}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("Dockerfile", "\n".join(lines).encode()), ("hello.py", hello)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    buffer.seek(0)
    for line in api.build(
        fileobj=buffer, custom_context=True, tag=image, rm=True, decode=True, labels={LABEL: "1"}
    ):
        if "error" in line:
            sys.exit(f"{image} could not be built: {line['error']}")
