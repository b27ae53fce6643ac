"""A shell that is held open in a container does what an exec of its own would, only sooner."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import EngineHiccup
from tasks.bluegreen.shell import Shells
from tests.lab.shop import Shop

PRINTED = "echo out; echo err >&2; cat; printf '%s' \"$TEXT\"; exit 97"
LONG = 'it\'s "$HOME" `id`\n--x\n\\n\t' * 4000  # 100,000 bytes, as long as a site may be


@pytest.fixture
def shells(shop: Shop) -> Iterator[Shells]:
    """Of a shop that is deployed."""
    shop.deploy("one")
    made = Shells()
    yield made
    made.close()


def held(shop: Shop) -> int:
    """How many shells are open in the proxy."""
    return shop.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").count("timeout 14400")


def test_a_script_prints_and_ends_as_in_an_exec(shop: Shop, shells: Shells) -> None:
    with Engine() as engine:
        for text in ("", LONG):
            for _ in range(2):
                output = shells.run(engine, shop.proxy, PRINTED, {"TEXT": text}, 20)
                assert output.code == 97
                assert output.text == f"out\nerr\n{text}"
    assert held(shop) == 1


def test_scripts_at_once_do_not_meet_and_leave_one_shell(shop: Shop, shells: Shells) -> None:
    def run(number: int) -> str:
        with Engine() as engine:
            script = "sleep 0.$N; echo $N"
            return shells.run(engine, shop.proxy, script, {"N": str(number)}, 20).text

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(run, range(5))) == [f"{number}\n" for number in range(5)]
    assert held(shop) == 1


def test_a_shell_that_is_gone_is_replaced(shop: Shop, shells: Shells) -> None:
    with Engine() as engine:
        for end in ("true", "exit 3"):
            shells.run(engine, shop.proxy, end, {}, 20)
            shop.api.restart(shop.proxy)
            assert shells.run(engine, shop.proxy, "echo here", {}, 20).text == "here\n"


def test_a_script_that_does_not_end_is_given_up_and_the_next_one_runs(
    shop: Shop, shells: Shells
) -> None:
    with Engine() as engine:
        with pytest.raises(EngineHiccup, match="timed out"):
            shells.run(engine, shop.proxy, "sleep 5", {}, 0.5)
        assert shells.run(engine, shop.proxy, "echo here", {}, 20).text == "here\n"


def test_a_run_leaves_no_shell_behind(shop: Shop) -> None:
    shop.deploy("one")
    assert held(shop) == 0
