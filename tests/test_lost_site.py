"""A release whose site somebody took away, or replaced by an older one's, is served again."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from flows.recover import recover
from tasks.observe import observe
from tests.lab.command import Command
from tests.lab.deaths import ensure_clean
from tests.lab.shop import Shop

SITE = "/etc/nginx/nonstop/sites/nonstop-{}.conf"


def taken_away(shop: Shop) -> None:
    """As `git clean` or `rsync --delete` of the directory does it."""
    shop.exec(f"rm -f {SITE.format(shop.name)} /etc/nginx/nonstop/sites/.*{shop.name}*")


def put_back(shop: Shop) -> None:
    """As a backup of the directory does it: the site that release 1 had."""
    shop.exec(f"cp /tmp/site {SITE.format(shop.name)}")


@pytest.mark.parametrize("lose", [taken_away, put_back])
def test_it_is_served_again_by_a_recovery(shop: Shop, lose: Callable[[Shop], None]) -> None:
    shop.deploy("one")
    shop.exec(f"cp {SITE.format(shop.name)} /tmp/site")
    shop.deploy("two")
    before = shop.containers()
    lose(shop)
    reload(shop, None if lose is taken_away else 1)
    (report,) = recover(shop.name)
    assert (report.release, report.changed) == (2, True)
    assert shop.releases() == {"two"}
    assert shop.containers() == before
    ensure_clean(shop)


def test_what_may_have_served_stays_and_a_person_is_asked(command: Command) -> None:
    shop = command.shop
    shop.deploy("one")
    taken_away(shop)
    reload(shop, None)
    _, err = command.run("recover", shop.name, code=3)
    said = " ".join(err.split())
    assert f"has no site of it, though release 1 runs: `nonstop deploy {shop.name}` gives" in said
    assert shop.containers() == {"1-1": "running", "1-2": "running"}
    command.run("deploy", shop.name)
    assert shop.live() == 2


def reload(shop: Shop, serves: int | None) -> None:
    """The running nginx has taken what there is now."""
    shop.api.kill(shop.proxy, "HUP")
    deadline = time.monotonic() + 60
    while (live.number if (live := observe.fn(shop.name).live) else None) != serves:
        assert time.monotonic() < deadline, live
