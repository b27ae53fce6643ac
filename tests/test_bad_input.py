"""What cannot be done is refused in a sentence, and nothing was touched."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.deploy import deploy, rollback
from flows.inventory import load
from tasks.bluegreen.app import parse
from tasks.bluegreen.errors import (
    BadInput,
    ImageUnavailable,
    NothingKept,
    Refused,
    RegistryAway,
    Unavailable,
)
from tests.lab.command import Command
from tests.lab.images import PROXY
from tests.lab.nginx import OwnNginx, until_it_answers
from tests.lab.shop import Shop, free_port

PROOF = "{% include 'proof.conf.j2' %}"
TEMPLATES = {
    "undefined": ("server { listen 80; " + PROOF + " {{ nope }} }", "'nope' is undefined"),
    "syntax": ("server {\n{% if %}\n}", "line 2 does not render"),
    "unproven": ("server { listen 80; }", "no line `{% include 'proof.conf.j2' %}`"),
    "rejected": ("server { listen 80; " + PROOF + " lissen 81; }", "rejects the site"),
    "outside": (PROOF + " proxy_pass http://x;", "rejects the site"),
}
DESCRIPTIONS: list[tuple[dict[str, Any], str]] = [  # refused as they are, without a look outside
    ({"ports": ["80:3000"]}, "ports: a published host port can belong to one container only"),
    ({"replicas": 0}, "replicas: input should be greater than or equal to 1 (given: 0)"),
    ({"replica": 2}, "replica: there is no such field"),
    ({"health": {"pth": "/"}}, "health.pth: there is no such field"),
    ({"stop_grace_period": "2 days"}, "stop_grace_period: '2 days' is not a duration"),
    ({"drain": {"limit": "forever"}}, "drain.limit: 'forever' is not a duration"),
    ({"mem_limit": "lots"}, "mem_limit: 'lots' is not a size"),
    ({"command": "echo 'one"}, 'command: "echo \'one" is no command (No closing quotation)'),
    ({"volumes": ["./data:/data"]}, "volumes: './data:/data' is not like name:/in/container"),
    ({"volumes": "data:/data"}, "volumes: input should be a valid list"),
    ({"labels": {"nonstop.app": "x"}}, "labels: label 'nonstop.app': names that start with"),
    ({"health": {"body": "("}}, "health.body: '(' is not a regular expression"),
    ({"image": "Hello:v1"}, "image: 'Hello:v1' is not an image"),
    ({"image": "Team/nonstop-lab-hello:v1"}, "image: 'Team/nonstop-lab-hello:v1' is not an image"),
    ({"image": "hello v1"}, "image: 'hello v1' is not an image"),
    ({"image": "hello@sha256:12"}, "image: 'hello@sha256:12' is not an image"),
    *(
        ({"hosts": ["fine.example", host]}, f"hosts: {host!r} is not a host name")
        for host in ("a;b", "x{", "a\nb", "a\n", "$host", "a b", "~^.*$", "a#", '"a"', "", "a..b")
    ),
]
PARTS: list[tuple[dict[str, Any], type[Refused], str]] = [  # refused after a look at what is there
    (
        {"image": "nonstop-lab-hello:nope"},
        ImageUnavailable,
        "image nonstop-lab-hello:nope is not on this host",
    ),
    ({"networks": ["nonstop-lab-nowhere"]}, BadInput, "no Docker network nonstop-lab-nowhere"),
    ({"env_file": "/nowhere/.env"}, BadInput, "env_file /nowhere/.env does not exist"),
    ({"proxy": {"template": "/nowhere/x.j2"}}, BadInput, "/nowhere/x.j2 does not exist"),
    ({"environment": {"A": "{{ relase }}"}}, BadInput, "environment A does not render ('relase'"),
    ({"environment": {"A": "{{ release"}}, BadInput, "environment A does not render (unexpected"),
    (
        {"environment": {"A": "{{ secret('nonstop-lab-nope') }}"}},
        BadInput,
        "no Secret block named nonstop-lab-nope",
    ),
    (
        {"environment": {"A": "{{ file('/nowhere/key') }}"}},
        BadInput,
        "the file /nowhere/key, which cannot be read",
    ),
    (
        {"health": {"headers": {"X-A": "{{ secret('a') }}"}}},
        BadInput,
        "health.headers does not render ('secret' is undefined); it may use app, release, replica, "
        "image, tag.",
    ),
    (
        {"proxy": {"container": "nonstop-lab-nope", "image": None}},
        Unavailable,
        "no container is named nonstop-lab-nope",
    ),
    (
        {"proxy": {"container": "nonstop-lab-nope", "image": "127.0.0.1:9/nope:1"}},
        RegistryAway,
        "image 127.0.0.1:9/nope:1 could not be pulled",
    ),
    (
        {"proxy": {"container": "nonstop-lab-nope", "image": "Nginx"}},
        BadInput,
        "proxy.image: 'Nginx' is not an image",
    ),
    (
        {"healthcheck": {"test": ["curl", "-f", "/"]}},
        BadInput,
        "healthcheck.test: the list starts with 'curl'",
    ),
]


def touched(shop: Shop) -> dict[str, Any]:
    """What a refusal must leave alone: containers, networks, volumes, and the proxy's files."""
    proxy = shop.api.containers(filters={"name": f"^/{shop.proxy}$"})
    return {
        "containers": {
            entry["Names"][0]: (
                entry["Id"],
                entry["State"],
                entry["Created"],
                sorted(entry["NetworkSettings"]["Networks"]),
            )
            for entry in shop.api.containers(all=True, filters={"name": shop.name})
        },
        "volumes": sorted(
            volume["Name"]
            for volume in shop.api.volumes(filters={"name": shop.name})["Volumes"] or []
        ),
        "networks": [n["Name"] for n in shop.api.networks() if n["Name"].startswith(shop.name)],
        "sites": shop.sites() if proxy else "",
        "live": shop.live() if proxy else None,
    }


@contextmanager
def refused(shop: Shop, kind: type[Refused], sentence: str) -> Iterator[None]:
    """What is within is refused with one sentence that has these words; nothing was touched."""
    before = touched(shop)
    with pytest.raises(kind, match=re.escape(sentence)) as caught:
        yield
    failure = caught.value
    assert failure.outcome == "refused"
    assert failure.what.endswith(".")
    for noise in ("\n", "Traceback", "Error(", "Pool(", "object at 0x", "('", "tuple"):
        assert noise not in failure.what.replace(sentence, ""), failure.what
    assert touched(shop) == before


def runs(shop: Shop) -> tuple[Callable[[], object], ...]:
    """A deploy and a rollback that are not going to end well."""
    return lambda: deploy(app=shop.app("two")), lambda: rollback(shop.name)


def test_a_wrong_description_is_refused_in_words(shop: Shop) -> None:
    for changes, sentence in DESCRIPTIONS:
        with pytest.raises(BadInput, match=re.escape(f"{shop.name}: {sentence}")) as caught:
            parse(shop.described(**changes))
        assert caught.value.outcome == "refused"
        assert "\n" not in caught.value.what


def test_every_mistake_in_a_description_is_named_at_once(shop: Shop) -> None:
    with pytest.raises(BadInput, match=r"port: field required; replicas: .* \(given: -1\)"):
        parse({"name": shop.name, "image": "nonstop-lab-hello:v1", "replicas": -1})


def test_one_host_may_be_written_without_a_list(shop: Shop) -> None:
    assert shop.app(hosts="Shop.example").hosts == ("shop.example",)


def test_what_is_not_there_is_refused_and_the_release_before_serves(serving: Shop) -> None:
    for changes, kind, sentence in PARTS:
        with refused(serving, kind, sentence):
            serving.deploy("two", **changes)
    serving.deploy("two")
    assert serving.releases() == {"two"}


def test_a_template_of_one_s_own_is_tried_before_anything_is_touched(
    serving: Shop, tmp_path: Path
) -> None:
    for name, (text, sentence) in TEMPLATES.items():
        template = tmp_path / f"{name}.conf.j2"
        template.write_text(text)
        with refused(serving, BadInput, sentence):
            serving.deploy("two", proxy={"template": str(template)})


def test_nginx_s_own_words_about_a_rejected_template_are_the_evidence(
    serving: Shop, tmp_path: Path
) -> None:
    template = tmp_path / "own.conf.j2"
    template.write_text(TEMPLATES["rejected"][0])
    with pytest.raises(BadInput) as caught:
        serving.deploy("two", proxy={"template": str(template)})
    assert 'unknown directive "lissen"' in caught.value.evidence
    assert f"nonstop-{serving.name}.conf" in caught.value.evidence


def test_without_an_engine_a_deploy_and_a_rollback_are_refused(
    serving: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"unix://{tmp_path}/docker.sock"
    sentence = f"No Docker engine answers at {nobody} (No such file or directory): start it"
    for run in runs(serving):
        with (
            refused(serving, Unavailable, sentence),
            monkeypatch.context() as patch,
        ):
            patch.setenv("DOCKER_HOST", nobody)
            run()


def test_behind_a_stopped_proxy_nothing_is_deployed(serving: Shop) -> None:
    serving.api.stop(serving.proxy)
    for run in runs(serving):
        with refused(
            serving, Unavailable, f"is exited: start it with `docker start {serving.proxy}`"
        ):
            run()
    serving.api.start(serving.proxy)
    serving.deploy("two")


def test_a_proxy_that_lacks_programs_is_refused(shop: Shop) -> None:
    shop.deploy("one")
    shop.exec("rm $(command -v base64) $(command -v readlink)")
    with refused(shop, Unavailable, "has no base64, readlink, which a deploy needs there: use"):
        shop.deploy("two")


@pytest.mark.parametrize("image", ["nonstop-lab-hello:v1", PROXY])
def test_a_container_whose_process_is_not_nginx_is_no_proxy_and_is_left_alone(
    shop: Shop, image: str
) -> None:
    shop.deploy("one")
    stranger = f"{shop.name}-stranger"
    made = shop.api.create_container(
        image, ["sleep", "600"], name=stranger, labels={"nonstop.lab.shop": shop.name}
    )
    shop.api.start(made["Id"])
    with refused(shop, Unavailable, "name the nginx container in proxy.container"):
        shop.deploy("two", proxy={"container": stranger, "network": f"{shop.name}-x"})


def alone(shop: Shop) -> dict[str, Any]:
    """A network that nobody else needs, so that it has to be made."""
    return {"network": f"{shop.name}-x"}


def test_a_port_that_is_taken_leaves_nothing_behind_and_does_not_block(shop: Shop) -> None:
    with (
        socket.create_server(("127.0.0.1", shop.port)),
        refused(shop, Unavailable, f"a port of 127.0.0.1:{shop.port}:80 is taken"),
    ):
        deploy(app=shop.app("one", proxy=alone(shop)))
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_a_first_deploy_that_is_refused_leaves_no_proxy_behind(shop: Shop, tmp_path: Path) -> None:
    with refused(shop, ImageUnavailable, "image nonstop-lab-hello:nope is not on this host"):
        deploy(app=shop.app("one", image="nonstop-lab-hello:nope", proxy=alone(shop)))
    nobody = f"127.0.0.1:{free_port()}/nonstop-lab-hello:v1"
    with refused(shop, RegistryAway, f"image {nobody} could not be pulled"):
        deploy(app=shop.app("one", image=nobody, pull_policy="always", proxy=alone(shop)))
    template = tmp_path / "own.conf.j2"
    template.write_text(TEMPLATES["rejected"][0])
    with refused(shop, BadInput, TEMPLATES["rejected"][1]):
        deploy(app=shop.app("one", proxy=alone(shop) | {"template": str(template)}))
    assert not any(touched(shop).values())


def test_a_first_deploy_whose_network_has_no_room_is_refused(shop: Shop) -> None:
    shop.api.create_network(f"{shop.name}-x", driver="bridge")
    with refused(shop, Unavailable, f"Network {shop.name}-x has no room for fixed addresses: let"):
        deploy(app=shop.app("one", proxy=alone(shop)))


def test_a_first_deploy_whose_replica_s_name_is_taken_is_refused(shop: Shop) -> None:
    shop.api.create_container(
        "nonstop-lab-hello:v1",
        name=shop.container("1-1"),
        labels={"nonstop.lab.shop": shop.name},
    )
    with refused(
        shop, Refused, f"A container named {shop.name}-1-1 exists and is not ours: rename"
    ):
        deploy(app=shop.app("one", proxy=alone(shop)))


def test_a_network_that_would_close_the_ports_of_a_running_proxy_is_refused(shop: Shop) -> None:
    theirs = f"{shop.name}-theirs"
    shop.api.create_network(theirs)
    OwnNginx(shop, host={"network_mode": theirs})
    until_it_answers(shop)
    with refused(shop, BadInput, f"through the network whose name comes first, which is {theirs}"):
        shop.deploy("one")
    over, failed = threading.Event(), []

    def visit() -> None:
        while not over.is_set():
            try:
                assert shop.get(Host="other.example.com").text == "the other site\n"
            except httpx.HTTPError as error:
                failed.append(error)

    with ThreadPoolExecutor(1) as aside:
        visitor = aside.submit(visit)
        shop.deploy("one", proxy={"network": f"{theirs}-nonstop"})
        over.set()
        visitor.result()
    assert failed == []
    shop.deploy("two", proxy={"network": f"{theirs}-nonstop"})


def test_a_site_on_a_port_that_the_proxy_does_not_publish_is_refused(command: Command) -> None:
    shop = command.shop
    new = {"publish": [f"127.0.0.1:{shop.port}:8080"]}
    with refused(shop, BadInput, f"the proxy {shop.proxy} publishes nothing, only of 8080: change"):
        deploy(app=shop.app("one", proxy=alone(shop) | new))
    shop.deploy("one")
    for changes in (new | {"listen": 8080}, {"listen": 8080}):  # publish is for a new proxy
        with refused(shop, BadInput, "would listen on port 8080 (proxy.listen), of which the"):
            shop.deploy("two", proxy=changes)
    command.describe(proxy={"listen": 8080})
    _, err = command.run("plan", shop.name, code=2)
    assert "publishes nothing, only of 80: change proxy.listen" in " ".join(err.split())


def test_behind_a_proxy_that_publishes_nothing_a_site_may_listen_on_any_port(shop: Shop) -> None:
    deploy(app=shop.app("one", proxy={"publish": [], "listen": 8080}))
    assert set(shop.containers()) == {"1-1", "1-2"}


def test_a_rollback_to_what_is_not_there_is_refused(shop: Shop) -> None:
    nobody = f"{shop.name}-x"
    with pytest.raises(NothingKept, match=f"no release of {nobody} on this engine: check the name"):
        rollback(nobody)
    shop.deploy("one")
    with refused(shop, NothingKept, "no kept release to roll back to (live: 1, kept: none)"):
        shop.rollback()
    shop.deploy("two")
    for number in (7, 2, 0, -1):
        with refused(shop, NothingKept, f"no kept release {number} to roll back to (live: 2, "):
            shop.rollback(number)
    shop.rollback(1)
    assert shop.releases() == {"one"}


def test_an_unknown_app_is_refused_with_the_names_of_those_that_are_known(tmp_path: Path) -> None:
    file = tmp_path / "prefect.yaml"
    with pytest.raises(BadInput, match=f"There is no inventory {file} in .*--file"):
        load("shop", file)
    app = {"name": "shop", "image": "nonstop-lab-hello:v1", "port": 3000}
    others = {"name": "rollback", "entrypoint": "flows.deploy.rollback"}
    shop = {"name": "a", "entrypoint": "flows.deploy.deploy", "parameters": {"app": app}}
    file.write_text(yaml.safe_dump({"deployments": [others, shop]}))
    assert load("shop", file).image == "nonstop-lab-hello:v1"
    with pytest.raises(BadInput, match=r"has no app named shpo \(known: shop\)") as caught:
        load("shpo", file)
    assert caught.value.outcome == "refused"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("deployments: [}", "is not YAML"),
        ("name: nonstop", "has no list of `deployments`"),
        ("- a", "has no list of `deployments`"),
        ("", "has no list of `deployments`"),
        (
            "deployments: [{name: a, entrypoint: flows.deploy.deploy}]",
            "deployment a has no `app`",
        ),
        (
            "deployments: [{entrypoint: flows.deploy.deploy, parameters: {app: {name: shop}}}]",
            "shop: image: field required; port: field required",
        ),
        (
            "deployments: [{entrypoint: flows.deploy.deploy, parameters: [1]}]",
            "has no `app`",
        ),
    ],
)
def test_an_inventory_that_is_wrong_is_refused_in_words(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=re.escape(sentence)) as caught:
        load("shop", file)
    assert "\n" not in caught.value.what
