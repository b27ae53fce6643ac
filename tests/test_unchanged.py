"""What serves already is not deployed again, and the run says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret

from tasks.compare import compare
from tasks.observe import observe
from tests.lab.command import Command
from tests.lab.history import runs
from tests.lab.registry import Registry, credentials
from tests.lab.shop import Shop

MINE: dict[str, Any] = {"pull_policy": "always", "replicas": 1}


@pytest.fixture
def registry(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry(api, private=True) as running:
        monkeypatch.setenv("DOCKER_CONFIG", credentials(running, tmp_path))
        yield running


def unchanged(shop: Shop, release: str = "", **changes: Any) -> bool:
    """Whether a deploy did nothing, which its report and its state both say."""
    before = shop.containers(), shop.sites()
    report = shop.deploy(release, force=False, **changes)
    state = runs(shop.name, limit=1)[0]["state"]
    assert (state["name"] == "Unchanged") == (not report.changed)
    assert state["type"] == "COMPLETED"
    assert state["message"] == report.message
    assert ((shop.containers(), shop.sites()) == before) == (not report.changed)
    return not report.changed


def differs(shop: Shop, release: str = "", **changes: Any) -> tuple[str, ...]:
    """What a deploy would change."""
    app = shop.app(release, **changes)
    found: tuple[str, ...] = compare(app, observe(app.name, app.proxy))
    return found


def test_what_serves_already_is_not_deployed_again(shop: Shop) -> None:
    numbered: dict[str, Any] = {"environment": {"NUMBER": "{{ release }}.{{ replica }}"}}
    shop.deploy("one", **numbered)
    report = shop.deploy("one", force=False, **numbered)
    assert report.message == f"Unchanged: release 1 of {shop.name} serves already."
    assert (report.outcome, report.release, report.changed) == ("succeeded", 1, False)
    assert "start-green" not in [step.name for step in report.steps]
    assert not unchanged(shop, "two", **numbered)
    shop.rollback()
    assert unchanged(shop, "one", **numbered)  # of release 1's environment, under number 3


def test_another_image_environment_setting_or_template_is_a_change(
    shop: Shop, tmp_path: Path
) -> None:
    own = tmp_path / "own.conf.j2"
    text = (Path(__file__).parents[1] / "templates" / "site.conf.j2").read_text()
    own.write_text(text)
    shop.description["proxy"]["template"] = str(own)
    shop.description["environment"] = {"MESSAGE": "fixed"}
    shop.deploy()
    assert differs(shop) == ()
    for changes, told in (
        ({"image": "nonstop-lab-hello:v2"}, "image nonstop-lab-hello:v2 is another one now"),
        ({"environment": {"MESSAGE": "{{ tag }}"}}, "environment MESSAGE"),
        ({"environment": {"MORE": ""}}, "environment MORE"),
        ({"replicas": 1}, "replicas: 2 -> 1"),
        ({"health": {"checks": 1}}, "health.checks: 2 -> 1"),
        ({"mem_limit": "64m"}, "mem_limit: none -> 67108864"),
        ({"labels": {"team": "b"}}, "labels.team"),
        ({"hosts": ["a.example"]}, "hosts"),
    ):
        assert any(line.startswith(told) for line in differs(shop, **changes)), changes
    assert differs(shop, proxy={"image": "nginx:other", "publish": ["8080:80"]}) == ()  # it stays
    for changes in ({"pull_policy": "missing"}, {"parallelism": 1}):  # how, not what
        assert differs(shop, **changes) == ()
    own.write_text(text + "# new\n")
    assert differs(shop) == ("the site in nginx",)


def test_a_release_that_does_not_run_as_it_should_is_deployed_again(shop: Shop) -> None:
    shop.deploy("one")
    shop.api.remove_container(shop.container("1-2"), force=True)
    assert "release 1 has 1 of 2 replicas running" in differs(shop, "one")
    assert not unchanged(shop, "one")


def test_a_secret_that_changed_is_a_change_and_is_not_told(
    shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    block, file = f"{shop.name}-token", tmp_path / "app.env"
    uses: dict[str, Any] = {
        "environment": {"TOKEN": f'{{{{ secret("{block}") }}}}'},
        "env_file": [str(file)],
    }
    Secret(value="secret-3kQ9").save(block)
    file.write_text("LINE=line-8Pw1\n")
    shop.deploy(**uses)
    assert unchanged(shop, **uses)
    Secret(value="secret-7Zt4").save(block, overwrite=True)
    assert differs(shop, **uses) == ("environment TOKEN",)
    file.write_text("LINE=line-5Vd2\n")
    assert differs(shop, **uses) == ("environment LINE", "environment TOKEN")
    assert "differs: environment LINE" in caplog.text
    for piece in ("secret-3kQ9", "secret-7Zt4", "line-8Pw1", "line-5Vd2"):
        assert piece not in caplog.text


def test_a_tag_is_resolved_at_the_registry_and_nothing_is_pulled_for_it(
    registry: Registry, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shop.description["environment"] = {"MESSAGE": "fixed"}  # without the tag
    registry.push("one")
    registry.push("two")
    tag = registry.move("stable", "one")
    shop.deploy(image=tag, **MINE)
    caplog.clear()
    assert unchanged(shop, image=tag, **MINE)
    digest = f"{registry.address}/shop@{registry.digest('one')}"
    assert unchanged(shop, image=digest, **MINE)
    assert "pulling" not in caplog.text
    registry.move("stable", "two")
    assert not unchanged(shop, image=tag, **MINE)
    assert shop.releases() == {"two"}


def test_the_command_does_nothing_and_says_so_unless_it_is_forced(command: Command) -> None:
    name = command.shop.name
    command.shop.deploy()
    out, _ = command.run("deploy", name)
    assert f"Unchanged: release 1 of {name} serves already." in " ".join(out.split())
    command.run("deploy", name, "--force")
    assert command.shop.live() == 2
