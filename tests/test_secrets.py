"""A secret reaches its container, and is in no log, label, report, site, artifact or UI."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.report import describe
from tasks.bluegreen.environment import MASK
from tasks.bluegreen.errors import BadTraffic, NonstopError, ReplicaCrashed, Unavailable, Unhealthy
from tasks.bluegreen.plan import plan_deploy
from tasks.observe import observe
from tasks.secret import secret
from tests.lab import history
from tests.lab.command import Command
from tests.lab.shop import Shop

BLOCK, KEY, LINE = "block-7Hq2x9", ("file-41Zrp0", "second-8Wc3l"), "env_file-5Tn6q4"
PIECES = (BLOCK, *KEY, LINE)  # what may be nowhere
TELL = 'env; echo says $TOKEN, loudly; echo "$KEY" | tail -n 1;'  # all that an app knows
SERVE = "exec python3 -u /hello.py"
BAD: list[tuple[dict[str, Any], type[NonstopError]]] = [
    ({"command": ["sh", "-c", f"{TELL} exit 3"]}, ReplicaCrashed),
    ({"environment": {"CRASH": "start"}}, ReplicaCrashed),
    (
        {
            "command": ["sh", "-c", f"{TELL} {SERVE}"],
            "environment": {"HEALTH_STATUS": "503"},
            "health": {"deadline": 2},
        },
        Unhealthy,
    ),
    (
        {
            "command": ["sh", "-c", f"{TELL} {SERVE}"],
            "environment": {"CRASH": "3"},
            "verify": {"bake_time": 30},
        },
        ReplicaCrashed,
    ),
]


class Keeper:
    """A Secret block, a secret file, an env_file, and an app that uses all three."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self.block = f"{shop.name}-token"
        Secret(value=BLOCK).save(self.block, overwrite=True)
        self.key, self.file = folder / "key", folder / "app.env"
        self.key.write_text("\n".join(KEY) + "\n")
        self.file.write_text(f"LINE='{LINE}'\n")
        token = f'{{{{ secret("{self.block}") }}}}'
        self.shop = shop
        self.environment = {
            "TOKEN": token,
            "KEY": f'{{{{ file("{self.key}") }}}}',
            "URL": f"https://shop:{token}@db.example/{{{{ release }}}}",
            "PRINT": f"the token is {token}.",
            "MESSAGE": token,
        }

    def uses(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Changes of a description that uses the secrets, over these."""
        environment = self.environment | changes.get("environment", {})
        used = {"replicas": 1, "env_file": [str(self.file)], "environment": environment}
        return changes | used

    def forget(self) -> None:
        """None of the sources is there any more."""
        Secret.delete(self.block)
        self.key.unlink()
        self.file.unlink()

    def told_by_prefect(self) -> str:
        """What the server keeps of the newest runs: parameters, states, logs, artifacts."""
        told = history.everything()
        assert f"report-{self.shop.name}" in told
        return told

    def told_by_docker_and_nginx(self) -> str:
        """Labels, names and commands of the app's containers, and the site."""
        listed = self.shop.api.containers(
            all=True, filters={"label": f"nonstop.app={self.shop.name}"}
        )
        return json.dumps(listed) + self.shop.sites()


@pytest.fixture
def keeper(shop: Shop, tmp_path: Path) -> Keeper:
    return Keeper(shop, tmp_path)


def ensure_secret(*texts: str) -> None:
    """No piece of a secret is in any of the texts."""
    for text in texts:
        assert text
        assert [piece for piece in PIECES if piece in text] == [], text


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        *((text, text) for text in ('{"a":  1.50}', "1e5", "true", '"quoted"', "plain")),
        ({"a": [1, "b"]}, '{"a": [1, "b"]}'),
    ],
)
def test_a_secret_is_the_text_that_was_saved(prefect: None, saved: Any, text: str) -> None:
    Secret(value=saved).save("nonstop-lab-as-saved", overwrite=True)
    try:
        assert secret("nonstop-lab-as-saved") == text
    finally:
        Secret.delete("nonstop-lab-as-saved")


def test_a_prefect_server_that_is_away_does_not_mean_that_there_is_no_such_secret() -> None:
    with (
        temporary_settings(
            {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
        ),
        pytest.raises(Unavailable, match="server does not tell what the Secret block nope is"),
    ):
        secret("nope")


def test_a_secret_reaches_its_container_and_is_told_nowhere(
    keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    shop, uses = keeper.shop, keeper.uses({})
    report = shop.deploy("one", **uses)
    assert shop.get().text == f"Hi there, I love ! {BLOCK}"
    environment = shop.api.inspect_container(shop.container("1-1"))["Config"]["Env"]
    assert {
        f"TOKEN={BLOCK}",
        "KEY=" + "\n".join(KEY),
        f"LINE={LINE}",
        f"URL=https://shop:{BLOCK}@db.example/1",
    } <= set(environment)
    seen = observe.fn(shop.name)
    planned = plan_deploy(shop.app("two", **uses), seen)
    assert "release 1 started" in keeper.told_by_prefect()
    ensure_secret(
        report.model_dump_json(),
        json.dumps(describe(seen)),
        seen.model_dump_json(),
        planned.model_dump_json(),
        caplog.text,
        keeper.told_by_prefect(),
        keeper.told_by_docker_and_nginx(),
    )


def test_a_secret_in_a_visitor_s_path_is_not_among_the_failing_requests(keeper: Keeper) -> None:
    shop = keeper.shop
    shop.deploy("one", **keeper.uses({}))
    bad = keeper.uses({"environment": {"FAIL_SHARE": "1"}, "verify": {"bake_time": 20}})
    with ThreadPoolExecutor(1) as aside:
        deploying = aside.submit(shop.deploy, "two", **bad)
        while not deploying.done():
            shop.get(f"/{BLOCK}/x")
            time.sleep(0.05)
    with pytest.raises(BadTraffic) as caught:
        deploying.result()
    assert "/x: 500 from" in caught.value.evidence
    ensure_secret(str(caught.value), keeper.told_by_prefect())


@pytest.mark.parametrize(("changes", "kind"), BAD, ids=["dumps", "prints", "unhealthy", "watched"])
def test_an_app_that_prints_its_secrets_and_fails_is_quoted_without_them(
    keeper: Keeper,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    kind: type[NonstopError],
) -> None:
    caplog.set_level("DEBUG")
    with pytest.raises(kind) as caught:
        keeper.shop.deploy("one", **keeper.uses(changes))
    assert MASK in caught.value.evidence
    assert caught.value.what in keeper.told_by_prefect()
    ensure_secret(
        str(caught.value),
        repr(caught.value),
        caplog.text,
        keeper.told_by_prefect(),
        keeper.told_by_docker_and_nginx(),
    )


def test_a_rollback_s_secrets_are_masked_though_their_sources_are_gone(
    keeper: Keeper, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = keeper.shop
    fails_later = f"test ! -e /world/changed || {{ {TELL} exit 3; }}; {SERVE}"
    world = {"volumes": [f"{tmp_path}:/world"], "command": ["sh", "-c", fails_later]}
    shop.deploy("one", **keeper.uses(world))
    shop.deploy("two")
    keeper.forget()
    (tmp_path / "changed").touch()
    caplog.set_level("DEBUG")
    with pytest.raises(ReplicaCrashed) as caught:
        shop.rollback()
    for words in (f"TOKEN={MASK}", f"KEY={MASK}", f"LINE={MASK}", f"says {MASK}, loudly"):
        assert words in caught.value.evidence
    ensure_secret(str(caught.value), caplog.text, keeper.told_by_prefect())
    (tmp_path / "changed").unlink()
    shop.rollback()
    assert shop.get().text == f"Hi there, I love ! {BLOCK}"


def test_the_command_shows_no_secret(keeper: Keeper, tmp_path: Path) -> None:
    shop, command = keeper.shop, Command(keeper.shop, tmp_path)
    command.describe(**keeper.uses({}))
    for arguments in (
        ["plan", shop.name],
        ["plan", shop.name, "--json"],
        ["deploy", shop.name],
        ["deploy", shop.name, "--json"],
        ["status", shop.name],
        ["status", shop.name, "--json"],
    ):
        ensure_secret("".join(command.run(*arguments)))
    command.describe(**keeper.uses({"command": ["sh", "-c", f"{TELL} exit 3"]}))
    for arguments in (["deploy", shop.name], ["deploy", shop.name, "--json"]):
        said = "".join(command.run(*arguments, code=1))
        assert f"says {MASK}, loudly" in said
        ensure_secret(said)
    assert shop.get().text == f"Hi there, I love ! {BLOCK}"


def test_a_secret_that_changed_is_taken_by_the_next_deploy(keeper: Keeper) -> None:
    keeper.shop.deploy("one", **keeper.uses({}))
    Secret(value="block-changed").save(keeper.block, overwrite=True)
    keeper.shop.deploy("two", **keeper.uses({}))
    assert keeper.shop.get().text == "Hi there, I love ! block-changed"
    keeper.shop.rollback()
    assert keeper.shop.get().text == f"Hi there, I love ! {BLOCK}"
