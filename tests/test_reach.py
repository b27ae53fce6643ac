"""A deploy works wherever its deployer is: beside the engine, among the containers, or far away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.inventory import ENTRYPOINT
from tasks.bluegreen.errors import CutoverUnproven
from tests.lab.shop import Shop
from tests.lab.tls import engine_behind_tls

LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any:  # SIOCSIFFLAGS: up and running
    fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
os.execv(sys.argv[1], sys.argv[1:])
"""
WGET = """#!/usr/bin/env python3
import sys, urllib.request
name, _, value = sys.argv[sys.argv.index("--header") + 1].partition(": ")
asked = urllib.request.Request(sys.argv[-1], headers={name: value})
try:
    print(urllib.request.urlopen(asked).read().decode())
except OSError as error:
    sys.exit(str(error))
"""


def deploy_from(shop: Shop, folder: Path, inside: list[str], **environment: str) -> None:
    """Runs `nonstop deploy` in another network namespace; it must succeed.

    Args:
        shop: what is deployed.
        folder: for the inventory and Prefect's own files.
        inside: command that enters the namespace.
        environment: variables of the deployer.
    """
    entry = {"name": "shop", "entrypoint": ENTRYPOINT, "parameters": {"app": shop.described()}}
    file = folder / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [entry]}))
    nonstop = str(Path(sys.executable).parent / "nonstop")
    done = subprocess.run(
        [*inside, sys.executable, "-c", LOOPBACK, nonstop, "deploy", shop.name, "--file", file],
        env=os.environ
        | {"PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": ""}
        | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_container_addresses_need_not_be_reached_from_the_deployer(
    shop: Shop, tmp_path: Path
) -> None:
    deploy_from(shop, tmp_path, ["unshare", "--net"])  # as with Docker Desktop: only the socket
    assert shop.releases() == {"v1"}


def test_a_deployer_may_run_in_a_container_on_the_app_s_network(shop: Shop, tmp_path: Path) -> None:
    shop.deploy("one")
    beside = shop.pid(shop.container("1-1"))
    deploy_from(shop, tmp_path, ["nsenter", "--target", str(beside), "--net"])
    assert shop.releases() == {"v1"}


def test_a_green_that_is_bad_is_noticed_from_afar_too(shop: Shop, tmp_path: Path) -> None:
    shop.deploy("one")
    shop.description["environment"]["HEALTH_STATUS"] = "503"
    shop.description["health"]["deadline"] = 3
    with pytest.raises(AssertionError, match="/health answers status 503"):
        deploy_from(shop, tmp_path, ["unshare", "--net"])
    assert shop.releases() == {"one"}


def test_a_proxy_from_which_replicas_cannot_be_asked_is_refused_only_from_afar(
    shop: Shop, tmp_path: Path
) -> None:
    shop.deploy("one")
    shop.exec(
        f"rm $(command -v curl); printf '%s' '{WGET}' > /usr/bin/wget; chmod +x /usr/bin/wget"
    )
    with pytest.raises(AssertionError, match=f"the proxy {shop.proxy} has no curl"):
        deploy_from(shop, tmp_path, ["unshare", "--net"])
    assert shop.containers() == dict.fromkeys(("1-1", "1-2"), "running")
    shop.deploy("two")
    assert shop.releases() == {"two"}


def test_a_front_door_whose_certificate_is_not_trusted_is_told_as_that(
    shop: Shop, tmp_path: Path
) -> None:
    with engine_behind_tls(tmp_path) as environment:
        shop.description["proxy"]["url"] = environment["DOCKER_HOST"].replace("tcp", "https")
        with pytest.raises(CutoverUnproven, match="with self-signed certificate"):
            shop.deploy("one")


def test_an_engine_may_be_reached_through_tls(shop: Shop, tmp_path: Path) -> None:
    with engine_behind_tls(tmp_path) as environment:
        shop.deploy("one")
        for _ in range(2):
            deploy_from(shop, tmp_path, [], **environment)
    assert shop.releases() == {"v1"}
