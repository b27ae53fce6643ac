"""Many deploys under all kinds of visitors: nobody is lost, no POST is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.shop import Shop
from tests.lab.visitors import Heard, posts_in_order


def back_and_forth(shop: Shop, folder: Path, deploys: int, rate: float, download: float) -> Heard:
    """Deploys two releases in turn under load; gives what visitors heard, of whom none was lost.

    Args:
        shop: where.
        folder: gets the ids of POSTs, written by the replicas.
        deploys: how many.
        rate: requests a second.
        download: seconds of one download; the drain limit is a little more.
    """
    changes = {
        "volumes": [f"{folder}:/posts"],
        "environment": {"POSTS_FILE": "/posts/ids"},
        "drain": {"limit": download + 2},
    }
    shop.deploy("zero", **changes)
    with shop.visitors(rate=rate, download=download) as heard:
        for number in range(deploys):
            if number % 3 == 2:
                shop.rollback()
            else:
                shop.deploy(f"release {number}", **changes)
    print(
        f"{deploys} deploys, {heard.requests} requests at {heard.rate:.0f}/s, {heard.lost} lost; "
        f"{dict(heard.kinds)}; {len(heard.confirmed)} POSTs; WebSockets {dict(heard.websockets)}"
    )
    assert heard.lost == 0, heard.losses
    assert posts_in_order(folder / "ids", heard.confirmed) == ""
    assert "cut" not in heard.websockets
    assert sum(state == "running" for state in shop.containers().values()) == 2
    return heard


def test_visitors_notice_nothing_of_deploys_back_and_forth(shop: Shop, tmp_path: Path) -> None:
    assert back_and_forth(shop, tmp_path, deploys=6, rate=300, download=2).requests > 6000


@pytest.mark.long
def test_thirty_deploys_lose_none_of_300_000_requests(shop: Shop, tmp_path: Path) -> None:
    heard = back_and_forth(shop, tmp_path, deploys=32, rate=560, download=20)
    assert heard.requests >= 300_000
    assert heard.rate >= 500
