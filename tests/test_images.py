"""Images: from a registry, pinned, there for a rollback, and not piling up."""

from __future__ import annotations

import io
import re
import signal
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import Failed, ImageUnavailable, RegistryAway
from tasks.bluegreen.images import TELL
from tasks.bluegreen.labels import config, joined
from tests.lab.images import PROXY
from tests.lab.registry import PASSWORD, USER, Registry, credentials
from tests.lab.shop import Shop

MINE: dict[str, Any] = {"pull_policy": "always", "replicas": 1}


@pytest.fixture(scope="module")
def running(api: Any) -> Iterator[Registry]:
    """A registry that asks for a password; the first push takes seconds, so all share it."""
    with Registry(api, private=True) as registry:
        yield registry


@pytest.fixture
def registry(
    running: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """A registry at which the user is logged in, and of whose images the host has none."""
    monkeypatch.setenv("DOCKER_CONFIG", credentials(running, tmp_path))
    yield running
    running.forget()
    if running.process is None:
        running.start()


def pulls(caplog: pytest.LogCaptureFixture) -> int:
    """How often a run has said that it asks the registry."""
    return sum(record.getMessage().startswith("pulling ") for record in caplog.records)


def image_of(shop: Shop, name: str) -> str:
    """Id of the image that a container like `2-1` was made from."""
    return str(shop.api.inspect_container(shop.container(name))["Config"]["Image"])


def test_what_the_registry_has_under_the_tag_is_what_runs(registry: Registry, shop: Shop) -> None:
    registry.push("one")
    registry.push("two")
    tag = registry.move("stable", "one")
    shop.deploy(image=tag, **MINE)
    assert shop.releases() == {"one"}
    registry.move("stable", "two")
    shop.deploy(image=tag, **MINE | {"pull_policy": "missing"})
    assert shop.releases() == {"one"}
    report = shop.deploy(image=tag, **MINE)
    assert shop.releases() == {"two"}
    assert report.image == tag


def test_a_release_is_pinned_by_the_id_of_its_image(registry: Registry, shop: Shop) -> None:
    image = registry.push("one")
    shop.deploy(image=image, **MINE)
    assert image_of(shop, "1-1") == shop.api.inspect_image(image)["Id"]
    digest = registry.digest("one")
    shop.deploy(image=f"{registry.address}/shop@{digest}", **MINE)
    assert image_of(shop, "2-1") == image_of(shop, "1-1")
    assert shop.get().text.endswith(f"app1,{digest.removeprefix('sha256:')[:12]}")


def test_a_rollback_needs_neither_the_registry_nor_the_tag(registry: Registry, shop: Shop) -> None:
    registry.push("one")
    registry.push("two")
    tag = registry.move("stable", "one")
    shop.deploy(image=tag, **MINE)
    pinned = image_of(shop, "1-1")
    registry.move("stable", "two")
    shop.deploy(image=tag, **MINE)
    registry.stop()
    shop.api.tag("nonstop-lab-hello:v1", f"{registry.address}/shop", "stable")
    shop.api.prune_images(filters={"dangling": False, "label": registry.label})
    try:
        shop.rollback()
    finally:
        shop.api.remove_image(tag)
    assert shop.releases() == {"one"}
    assert image_of(shop, "3-1") == pinned


@pytest.mark.parametrize(
    ("user", "reference", "words"),
    [
        ("nobody", "one", "no basic auth credentials"),
        ("wrong", "one", "unauthorized"),
        ("right", "nope", "manifest unknown"),
    ],
)
def test_a_registry_that_refuses_is_asked_once_and_nothing_is_touched(
    registry: Registry,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    user: str,
    reference: str,
    words: str,
) -> None:
    image = registry.push("one").removesuffix("one") + reference
    shop.deploy("zero")
    before = shop.sites()
    if user == "nobody":
        (tmp_path / "config.json").unlink()
    else:
        credentials(registry, tmp_path, PASSWORD if user == "right" else "wrong")
    caplog.set_level("INFO")
    sentence = rf"image {image} could not be pulled \(.*{words}.*\): check .*`docker login`"
    with pytest.raises(ImageUnavailable, match=sentence) as caught:
        shop.deploy("two", image=image, **MINE)
    assert pulls(caplog) == 1
    assert caught.value.outcome == "refused"
    assert caught.value.serves == "Release 1 serves, as before."
    assert PASSWORD not in str(caught.value)
    assert shop.sites() == before
    assert shop.containers() == {"1-1": "running", "1-2": "running"}
    assert shop.releases() == {"zero"}


def test_a_registry_that_does_not_answer_is_asked_three_times(
    registry: Registry, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    image = registry.push("one")
    shop.deploy("zero")
    before = shop.sites()
    registry.stop()
    caplog.set_level("INFO")
    with pytest.raises(RegistryAway, match=r"connection refused.*is the registry reachable"):
        shop.deploy("two", image=image, **MINE)
    assert pulls(caplog) == 3
    assert shop.sites() == before
    assert shop.containers() == {"1-1": "running", "1-2": "running"}


def test_a_registry_that_comes_back_meanwhile_is_no_reason_to_fail(
    registry: Registry, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    image = registry.push("one")
    registry.stop()
    caplog.set_level("INFO")

    def come_back() -> None:
        while not pulls(caplog):
            time.sleep(0.02)
        registry.start()

    with ThreadPoolExecutor(1) as pool:
        back = pool.submit(come_back)
        shop.deploy(image=image, **MINE)
        back.result()
    assert shop.releases() == {"one"}


def test_a_registry_that_takes_the_question_and_never_answers_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.deploy("one")
    monkeypatch.setenv("DOCKER_CLIENT_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        image = f"127.0.0.1:{silent.getsockname()[1]}/shop:two"
        began = time.monotonic()
        with pytest.raises(RegistryAway, match=r"nothing was heard of it for 5 s"):
            shop.deploy(image=image, **MINE)
    assert time.monotonic() - began < 60
    assert shop.releases() == {"one"}


def test_a_pull_that_takes_long_tells_how_far_it_is(
    registry: Registry, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    image = registry.push("one")
    caplog.set_level("INFO")
    assert registry.process
    registry.process.send_signal(signal.SIGSTOP)
    threading.Timer(TELL + 4, registry.process.send_signal, [signal.SIGCONT]).start()
    shop.deploy(image=image, **MINE)
    assert re.search(rf"pulling {image} for 1\d s: \d+ of \d+ MiB", caplog.text)


def test_images_of_releases_that_are_gone_do_not_pile_up(registry: Registry, shop: Shop) -> None:
    for number in range(1, 6):
        shop.deploy(image=registry.push(f"r{number}"), **MINE)
        assert registry.on_host() == min(number, 2)
    shop.rollback()
    assert registry.on_host() == 2
    assert shop.releases() == {"r4"}


def test_images_that_only_the_host_has_stay(registry: Registry, shop: Shop) -> None:
    for image in (registry.build("one"), registry.build("two"), registry.push("three")):
        shop.deploy(image=image, replicas=1, keep=0, pull_policy="missing")
    assert shop.containers() == {"3-1": "running"}
    assert registry.on_host() == 3


def test_an_image_that_was_built_here_stays_though_a_registry_has_it(
    registry: Registry, shop: Shop
) -> None:
    for release in ("one", "two"):
        image = registry.build(release, f"{registry.address}/shop")
        user = {"username": USER, "password": PASSWORD}
        assert "error" not in shop.api.push(image, auth_config=user)
        assert shop.api.inspect_image(image)["RepoDigests"]
        shop.deploy(image=image, replicas=1, keep=0, pull_policy="missing")
    shop.deploy(image=registry.push("three"), replicas=1, keep=0, pull_policy="missing")
    assert registry.on_host() == 3
    shop.deploy(replicas=1, keep=0)
    assert shop.containers() == {"4-1": "running"}
    assert registry.on_host() == 2  # without the one that was pulled


def test_the_image_of_a_new_proxy_is_pulled(registry: Registry, shop: Shop) -> None:
    image = f"{registry.address}/nginx:1"
    shop.api.tag(PROXY, f"{registry.address}/nginx", "1")
    user = {"username": USER, "password": PASSWORD}
    assert "error" not in shop.api.push(image, auth_config=user)
    shop.api.remove_image(image)
    shop.deploy("one", proxy={"image": image})
    assert shop.releases() == {"one"}
    shop.close()
    shop.api.remove_image(image)


def test_an_image_that_may_not_be_pulled_stays(registry: Registry, shop: Shop) -> None:
    shop.deploy(image=(image := registry.push("one")), keep=0, **MINE)
    shop.deploy(image=image, replicas=1, keep=0, pull_policy="never")
    shop.deploy(replicas=1, keep=0)
    assert registry.on_host() == 1


def test_an_image_stays_while_another_release_needs_it(registry: Registry, shop: Shop) -> None:
    one, two, three = (registry.push(release) for release in ("one", "two", "three"))
    for image in (one, one, two, three):
        shop.deploy(image=image, keep=2, **MINE)
    assert set(shop.containers()) == {"4-1", "3-1", "2-1"}
    assert registry.on_host() == 3
    shop.rollback(2)
    assert shop.releases() == {"one"}


def test_an_image_may_have_no_environment(registry: Registry, shop: Shop) -> None:
    buffer = io.BytesIO()
    tarfile.open(fileobj=buffer, mode="w").close()
    name = f"{registry.address}/empty"
    label = [f"LABEL {registry.label}"]
    shop.api.import_image_from_data(buffer.getvalue(), repository=name, changes=label)
    with Engine() as engine:
        assert engine.image_environment(name) == {}


@pytest.mark.parametrize("seen", [{}, {"Config": None}, {"Config": {}}, {"Config": {"Env": None}}])
def test_what_an_engine_leaves_out_is_empty(seen: dict[str, Any]) -> None:
    assert config(seen, "Env") is None
    assert joined(seen) == joined({"NetworkSettings": seen | {"Networks": None}}) == {}


def test_images_of_failed_deploys_do_not_pile_up(registry: Registry, shop: Shop) -> None:
    one = registry.push("one")
    shop.deploy(image=one, **MINE)
    for image in (registry.push("bad"), registry.push("worse"), one):
        with pytest.raises(Failed):
            shop.deploy(image=image, environment={"CRASH": "start"}, **MINE)
        assert registry.on_host() == 1
    assert shop.releases() == {"one"}
