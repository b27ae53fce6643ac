"""The doctor names what would stop a deploy, or make visitors notice it, and the remedy."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.command import Command
from tests.lab.images import PROXY
from tests.lab.shop import free_port


def findings(command: Command, code: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command.run("doctor", "--json", code=code)[0])
    return found


def only(found: list[dict[str, Any]], level: str, words: str) -> dict[str, Any]:
    """The one finding of that level with these words."""
    (one,) = [f for f in found if f["level"] == level and words in f["what"]]
    return one


def test_where_all_is_well_the_doctor_finds_no_problem(command: Command) -> None:
    shop = command.shop
    assert only(findings(command), "fine", "the first deploy creates it from")
    shop.deploy("one")
    before = shop.containers(), shop.sites()
    out, _ = command.run("doctor", shop.name)
    assert "nginx takes its site" in out
    assert "MiB are free" in out
    assert "problem" not in out
    assert (shop.containers(), shop.sites()) == before


def test_each_problem_has_its_remedy(command: Command, tmp_path: Any) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.deploy("two")
    shop.api.start(shop.container("1-1"))  # as a run that died before its teardown leaves it
    stranger = shop.api.create_container(
        "hello:v1", name=shop.container("9-1"), labels={"nonstop.lab.shop": shop.name}
    )
    command.describe(restart="no")
    found = findings(command)
    assert "nonstop recover" in only(found, "warning", "a run died")["remedy"]
    assert "docker rename" in only(found, "warning", "named like a replica")["remedy"]
    assert "unless-stopped" in only(found, "warning", "a reboot ends it")["remedy"]
    shop.api.remove_container(stranger["Id"])
    shop.exec("echo 'server { lisen 1; }' > /etc/nginx/nonstop/sites/broken.conf")
    broken = only(findings(command, 2), "problem", "does not load as it is: repair it first")
    assert 'unknown directive "lisen"' in broken["what"]
    command.environment |= {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    command.describe(environment={"A": "{{ nope }}"})
    found = findings(command, 2)
    assert "prefect server start" in only(found, "problem", "no server answers")["remedy"]
    assert only(found, "problem", "environment A does not render")
    command.environment |= {"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    assert only(findings(command, 2), "problem", "No Docker engine answers")


def test_a_single_file_that_is_mounted_into_nginx_is_named(command: Command, tmp_path: Any) -> None:
    shop = command.shop
    file = tmp_path / "nginx.conf"
    file.write_text("events {}\nhttp { include /etc/nginx/conf.d/*.conf; }\n")
    shop.api.create_container(
        PROXY,
        name=shop.proxy,
        labels={"nonstop.lab.shop": shop.name},
        host_config=shop.api.create_host_config(
            binds=[f"{file}:/etc/nginx/nginx.conf"], log_config={"Type": "none"}
        ),
    )
    shop.api.start(shop.proxy)
    command.describe(proxy={"image": None})
    found = findings(command)
    assert "its directory" in only(found, "warning", "bind mount of a single file")["remedy"]
    assert "json-file" in only(found, "warning", "log driver none cannot be read")["remedy"]
    assert "docker update" in only(found, "warning", "does not come back after a reboot")["remedy"]
