"""The doctor names what would stop a deploy, or make visitors notice it, and the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from flows.deploy import deploy
from flows.doctor import of_engine, of_log, of_nginx
from flows.pushes.push import Subscriber
from tasks.bluegreen.site import TEMPLATES
from tests.lab.command import Command
from tests.lab.deliveries import DIGEST
from tests.lab.images import PROXY
from tests.lab.nginx import OwnNginx
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
    assert "grows for ever" not in out
    assert (shop.containers(), shop.sites()) == before


def test_each_problem_has_its_remedy(command: Command, tmp_path: Any) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.deploy("two")
    shop.api.start(shop.container("1-1"))  # as a run that died before its teardown leaves it
    stranger = shop.api.create_container(
        "nonstop-lab-hello:v1", name=shop.container("9-1"), labels={"nonstop.lab.shop": shop.name}
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


def test_a_log_that_grows_for_ever_is_named(command: Command) -> None:
    shop = command.shop
    OwnNginx(shop, log={"Type": "json-file"})
    command.describe()
    found = only(findings(command), "warning", "grows for ever: HostConfig.LogConfig is")
    assert "`--log-opt max-size=20m --log-opt max-file=5`" in found["remedy"]
    (ours,) = of_log("proxy", {"Type": "json-file", "Config": {"max-size": "-1"}}, ours=True)
    assert "`docker rm -f proxy`" in ours.remedy
    assert not list(of_log("proxy", {"Type": "local", "Config": None}, ours=True))


def test_sites_that_are_mounted_read_only_are_a_problem(command: Command, tmp_path: Path) -> None:
    OwnNginx(command.shop, other="", host={"binds": [f"{tmp_path}:/etc/nginx/conf.d:ro"]})
    command.describe()
    words = "no site can be put into /etc/nginx/conf.d (Read-only file system)"
    remedy = only(findings(command, 2), "problem", words)["remedy"]
    assert remedy.startswith("mount it writable, or set proxy.directory")


def test_a_proxy_that_cannot_keep_runs_apart_is_a_problem(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    shop.exec("mv $(command -v flock) /flock")
    assert "util-linux" in only(findings(command, 2), "problem", "has no flock")["what"]


def test_a_template_without_keepalive_min_timeout_is_named(
    command: Command, tmp_path: Path
) -> None:
    template = tmp_path / "site.conf.j2"
    text = (TEMPLATES / "site.conf.j2").read_text()
    template.write_text(re.sub(r".*keepalive_min_timeout.*\n", "", text))
    command.describe(proxy={"template": str(template)})
    command.shop.deploy("one")
    found = only(findings(command), "warning", "has no keepalive_min_timeout, so a reload may")
    assert "`keepalive_min_timeout 5s;`" in found["remedy"]


def test_an_old_engine_is_a_problem_and_an_old_nginx_is_told_of() -> None:
    assert of_engine("18.09.1", "1.39").level == "problem"
    assert of_engine("19.03.0", "1.40").level == "fine"
    assert of_nginx("nginx", (1, 27, 3)).level == "warning"
    assert "1.27.4 or later" in of_nginx("nginx", (1, 22, 1)).remedy
    assert of_nginx("nginx", (1, 27, 4)).level == "fine"


def test_a_schedule_that_takes_off_what_a_push_deployed_is_named(command: Command) -> None:
    shop, words = command.shop, "its schedule deploys nonstop-lab-hello:v1 as written"
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            client.create_flow(deploy),
            shop.name,
            parameters={"app": shop.described(deploy_on_push="v*")},
            schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"))],
        )
        try:
            found = only(findings(command), "warning", words)
            assert found["where"] == shop.name
            assert "a tag that moves" in found["remedy"]
            (schedule,) = client.read_deployment_schedules(deployment)
            client.update_deployment_schedule(deployment, schedule.id, active=False)
            assert not [f for f in findings(command) if words in f["what"]]
        finally:
            client.delete_deployment(deployment)


@pytest.mark.parametrize(
    ("image", "pattern", "named"),
    [
        ("shop:1.4", "1.*", True),
        ("shop:1.4.9", "1.4.*", True),
        ("shop:v1-slim", "v*-slim", True),
        ("shop:sha-9fce4ee", "sha-*", True),
        (f"shop:stable@{DIGEST}", "stable", True),
        ("shop:1.4", None, False),
        ("shop:1.4", "1.4", False),
        ("shop:1.4", "1.4.*", False),  # it may stand for all of 1.4
        ("shop:1", "1.*", False),
        ("shop:stable", "stable", False),
        ("shop:latest", "*", False),
        ("shop", "*", False),
    ],
)
def test_a_schedule_is_named_only_where_no_tag_can_be_meant_to_move(
    image: str, pattern: str | None, named: bool
) -> None:
    app = Subscriber(name="shop", image=image, deploy_on_push=pattern, deployment=uuid4())
    assert app.leaves_behind(image) == named


def test_an_engine_that_stops_containers_with_itself_is_told_of(command: Command) -> None:
    kept = command.shop.api.info()["LiveRestoreEnabled"]
    told = [f for f in findings(command) if "live-restore is off" in f["what"]]
    assert [f["level"] for f in told] == ([] if kept else ["warning"])
    assert all("daemon.json" in f["remedy"] for f in told)


def test_a_proxy_of_ours_that_is_gone_or_of_another_image_is_named(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    command.describe(proxy={"image": "nginx:other"})
    assert only(findings(command), "warning", "was created from nonstop-lab-nginx:1, not from")
    command.describe()
    shop.api.remove_container(shop.proxy, force=True)
    found = only(findings(command, 2), "problem", f"is not there, though {shop.name} run behind it")
    assert found["remedy"] == f"`nonstop deploy {shop.name}` makes it anew"


def test_what_is_left_over_of_apps_that_are_no_longer_described_is_named(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    words = "is not described", "no app is behind"
    said = [f["what"] for f in findings(command) if f["where"] in (shop.name, shop.proxy)]
    assert not [what for what in said if any(word in what for word in words)]
    command.file.write_text("deployments: []")
    (of_app,) = [f for f in findings(command) if f["where"] == shop.name]
    assert of_app["what"] == "is not described in the inventory, and has 2 containers"
    assert f"docker rm -f {shop.container('1-1')} {shop.container('1-2')}" in of_app["remedy"]
    (path,) = re.findall(rf"`docker exec {shop.proxy} rm (\S+)`", of_app["remedy"])
    assert shop.exec(f"ls {path}").strip() == path
    for name in shop.containers():
        shop.api.remove_container(shop.container(name), force=True)
    (of_proxy,) = [f for f in findings(command) if f["where"] == shop.proxy]
    assert of_proxy["what"] == "is a proxy of ours that no app is behind"
    assert f"docker rm -f {shop.proxy}" in of_proxy["remedy"]
