"""`nonstop up --systemd`: units that systemd accepts and that run the same parts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab.command import BIN
from tests.lab.engine import apt_install

INVENTORY = "deployments: [{name: a, parameters: {image: '{{ $SHOP_IMAGE }}'}}]"


def systemd(folder: Path, *options: str, code: int = 0, **environment: str) -> str:
    """What `nonstop up --systemd` says in a directory with an inventory."""
    (folder / "prefect.yaml").write_text(INVENTORY)
    done = subprocess.run(
        [BIN / "nonstop", "up", "--systemd", *options],
        cwd=folder,
        env=os.environ | {"PREFECT_API_URL": ""} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())


def test_the_units_are_such_as_systemd_accepts(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        apt_install("systemd")
    folder = tmp_path / "100 % of $HOME"
    folder.mkdir()
    home = folder / 'a "home"'
    options = ("--directory", str(tmp_path), "--notify", "slack-webhook/team")
    said = systemd(folder, *options, PREFECT_HOME=str(home))
    units = sorted(tmp_path.glob("*.service"))
    names = {f"nonstop-{part}" for part in ("server", "runner", "webhook")}
    assert {unit.stem for unit in units} == names
    for unit in units:
        assert unit.stem in said.partition("systemctl enable --now")[2]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if "nonstop-" in line] == []
    runner = (tmp_path / "nonstop-runner.service").read_text()
    assert "KillMode=process" in runner
    assert "--notify slack-webhook/team" in runner
    assert f"WorkingDirectory={tmp_path}/100 %% of $HOME\n" in runner
    assert f'Environment="PREFECT_HOME={tmp_path}/100 %% of $HOME/a \\"home\\""\n' in runner


def test_an_inventory_may_be_a_link(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "one.yaml").touch()
    (tmp_path / "prefect.yaml").symlink_to(there / "one.yaml")
    systemd(tmp_path, "--directory", str(tmp_path))
    runner = (tmp_path / "nonstop-runner.service").read_text()
    assert f"WorkingDirectory={there}\n" in runner
    assert " --file one.yaml" in runner


def test_without_an_inventory_no_unit_is_written(tmp_path: Path) -> None:
    said = systemd(tmp_path, "--directory", str(tmp_path), "--file", "no.yaml", code=2)
    assert "There is no inventory no.yaml" in said
    assert not list(tmp_path.glob("*.service"))


def test_no_server_unit_where_prefect_api_url_names_one(tmp_path: Path) -> None:
    url = "http://prefect.example.com/api"
    systemd(tmp_path, "--directory", str(tmp_path), PREFECT_API_URL=url)
    assert not (tmp_path / "nonstop-server.service").exists()
    assert f'"PREFECT_API_URL={url}"' in (tmp_path / "nonstop-runner.service").read_text()


def test_a_secret_of_the_environment_is_in_no_unit(tmp_path: Path) -> None:
    secret = "postgresql+asyncpg://prefect:open-sesame@db/prefect"
    said = systemd(
        tmp_path,
        "--directory",
        str(tmp_path),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=secret,
    )
    named = said.partition("/etc/nonstop.env: ")[2]
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" in named
    for unit in tmp_path.glob("*.service"):
        assert "open-sesame" not in unit.read_text()


def test_what_the_units_lack_of_the_environment_is_named(tmp_path: Path) -> None:
    others = ("DOCKER_HOST", "DOCKER_CONFIG", "NONSTOP_WEBHOOK_SECRETS", "FORWARDED_ALLOW_IPS")
    environment: Any = dict.fromkeys([*others, "no_proxy", "UNRELATED"], "value-of-it")
    said = systemd(tmp_path, "--directory", str(tmp_path), **environment)
    named = said.partition("/etc/nonstop.env: ")[2].rstrip(".").split(", ")
    assert {*others, "no_proxy", "SHOP_IMAGE"} <= set(named)
    assert "UNRELATED" not in named
    assert "value-of-it" not in said + (tmp_path / "nonstop-runner.service").read_text()


@pytest.mark.parametrize("where", ["nowhere", "prefect.yaml"])
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    said = systemd(tmp_path, "--directory", str(tmp_path / where), code=2)
    assert f"{where}/nonstop-server.service cannot be written" in said
    assert "name another directory with --directory" in said
