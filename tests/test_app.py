"""What an operator may write, and what the engine makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.bluegreen.app import App, parse
from tasks.bluegreen.environment import environment, tag
from tasks.bluegreen.errors import BadInput
from tests.lab.shop import Shop

LEAST: dict[str, Any] = {"name": "shop", "image": "shop:1", "port": 80}


def app(**fields: Any) -> App:
    return parse(LEAST | fields)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("1m30s", 90), ("0.5h", 1800), (7, 7), ("2.5", 2.5)],
)
def test_durations_are_as_in_compose(written: Any, seconds: float) -> None:
    assert app(drain={"limit": written}).drain.limit == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("64m", 64 * 2**20), ("1g", 2**30), ("1gb", 2**30), (7_000_000, 7_000_000)],
)
def test_sizes_are_as_in_compose(written: Any, size: int) -> None:
    assert app(mem_limit=written).mem_limit == size


def test_both_spellings_of_a_mapping_are_the_same() -> None:
    mapping = {"A": "1", "B": "true", "C": ""}
    assert app(environment={"A": 1, "B": True, "C": ""}).environment == mapping
    assert app(environment=["A=1", "B=true", "C="]).environment == mapping
    assert app(labels=["a=b=c"]).labels == {"a": "b=c"}
    assert app(extra_hosts={"db": "10.0.0.1"}).extra_hosts == ("db:10.0.0.1",)
    assert app(env_file="one.env").env_file == ("one.env",)


@pytest.mark.parametrize("written", [["A=1", "KEY"], {"A": 1, "KEY": None}])
def test_a_variable_without_a_value_is_nobody_s_shell_s(written: Any) -> None:
    with pytest.raises(BadInput, match=r"environment: KEY has no value: .* write `KEY=`"):
        app(environment=written)


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        app(replicas=0, prot=3, health={"interval": "soon"}, image="a b")
    for words in ("shop: ", "replicas", "prot", "health.interval", "'soon' is not a duration"):
        assert words in caught.value.what
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("shop", "latest"),
        ("shop:1.2", "1.2"),
        ("localhost:5000/shop", "latest"),
        ("localhost:5000/team/shop:v3", "v3"),
        ("shop:v4@sha256:" + "a" * 64, "v4"),
        ("shop@sha256:" + "b" * 64, "b" * 12),
    ],
)
def test_the_tag_of_an_image(image: str, expected: str) -> None:
    assert tag(app(image=image).image) == expected


def test_environment_values_are_templates_over_the_replica_s_facts(tmp_path: Path) -> None:
    (tmp_path / "one.env").write_text("A=file\nB=file\n# nothing\nC='two words'\n")
    described = app(
        image="shop:v9",
        env_file=[str(tmp_path / "one.env")],
        environment={"B": "{{ app }}-{{ release }}-{{ replica }}", "D": "{{ image }} {{ tag }}"},
    )
    assert environment(described, 7, 2, str) == {
        "A": "file",
        "B": "shop-7-2",
        "C": "two words",
        "D": "shop:v9 v9",
    }


@given(st.dictionaries(st.sampled_from("ABC"), st.text(st.characters(exclude_characters="{}"))))
def test_values_without_templates_reach_the_container_as_they_are(values: dict[str, str]) -> None:
    assert environment(app(environment=values), 1, 1, str) == values


def test_a_template_cannot_run_code() -> None:
    with pytest.raises(BadInput, match="environment A does not render"):
        environment(app(environment={"A": "{{ ''.__class__.__mro__ }}"}), 1, 1, str)


COMPOSE: dict[str, Any] = {
    "replicas": 1,
    "entrypoint": ["python3", "-u"],
    "command": ["/hello.py"],
    "user": "1000:1000",
    "working_dir": "/tmp",
    "labels": {"team": "shop"},
    "init": True,
    "read_only": True,
    "tmpfs": "/run:size=1m",
    "cap_add": ["NET_ADMIN"],
    "cap_drop": ["MKNOD"],
    "security_opt": ["no-new-privileges"],
    "ulimits": {"nofile": {"soft": 1000, "hard": 2000}, "nproc": 500},
    "extra_hosts": ["database:10.1.2.3"],
    "mem_limit": "128m",
    "cpus": 0.5,
    "restart": "on-failure:3",
    "stop_signal": "SIGINT",
    "healthcheck": {"test": ["CMD", "true"], "interval": "1s", "timeout": "2s", "retries": 4},
}


def settings(shop: Shop, container: str) -> dict[str, Any]:
    """The part of a container's description that its App decides."""
    seen = shop.api.inspect_container(shop.container(container))
    config, host = seen["Config"], seen["HostConfig"]
    hosts = ("Binds", "Init", "ReadonlyRootfs", "Tmpfs", "CapAdd", "CapDrop", "SecurityOpt")
    more = ("ExtraHosts", "Memory", "NanoCpus", "RestartPolicy")
    mine = ("Entrypoint", "Cmd", "User", "WorkingDir", "StopSignal", "Healthcheck")
    found = {name: host[name] for name in (*hosts, *more)} | {n: config[n] for n in mine}
    limits = sorted((u["Name"], u["Soft"], u["Hard"]) for u in host["Ulimits"])
    return found | {"Ulimits": limits, "team": config["Labels"]["team"], "Env": config["Env"]}


def test_compose_s_fields_mean_what_they_mean_there_also_after_a_rollback(
    shop: Shop, tmp_path: Path
) -> None:
    fields = COMPOSE | {"volumes": [f"{tmp_path}:/data:ro"]}
    shop.deploy("one", **fields)
    found = settings(shop, "1-1")
    assert {name: value for name, value in found.items() if name != "Env"} == {
        "Entrypoint": ["python3", "-u"],
        "Cmd": ["/hello.py"],
        "User": "1000:1000",
        "WorkingDir": "/tmp",
        "team": "shop",
        "Binds": [f"{tmp_path}:/data:ro"],
        "Init": True,
        "ReadonlyRootfs": True,
        "Tmpfs": {"/run": "size=1m"},
        "CapAdd": ["NET_ADMIN"],
        "CapDrop": ["MKNOD"],
        "SecurityOpt": ["no-new-privileges"],
        "Ulimits": [("nofile", 1000, 2000), ("nproc", 500, 500)],
        "ExtraHosts": ["database:10.1.2.3"],
        "Memory": 128 * 2**20,
        "NanoCpus": 500_000_000,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "StopSignal": "SIGINT",
        "Healthcheck": {
            "Test": ["CMD", "true"],
            "Interval": 10**9,
            "Timeout": 2 * 10**9,
            "Retries": 4,
        },
    }
    assert shop.api.inspect_container(shop.container("1-1"))["State"]["Health"]
    shop.deploy("two")
    shop.rollback()
    assert settings(shop, "3-1") == found
