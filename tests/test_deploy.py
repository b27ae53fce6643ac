"""What visitors and operators see of a deploy."""

from __future__ import annotations

from pathlib import Path

from tests.lab.shop import Shop
from tests.lab.visitors import posts_in_order


def test_visitors_notice_nothing_while_green_replaces_blue(shop: Shop, tmp_path: Path) -> None:
    ledger = {"volumes": [f"{tmp_path}:/posts"], "environment": {"POSTS_FILE": "/posts/ids"}}
    shop.deploy("one", **ledger)
    with shop.visitors() as heard:
        shop.deploy("two", verify={"bake_time": 2}, **ledger)
    assert heard.lost == 0, heard.losses
    assert set(heard.releases) == {"one", "two"}
    assert shop.releases() == {"two"}
    assert heard.confirmed
    assert posts_in_order(tmp_path / "ids", heard.confirmed) == ""


def test_a_rollback_returns_image_environment_and_settings(shop: Shop) -> None:
    shop.deploy("one", replicas=1, health={"path": "/ready"})
    shop.deploy("two", image="hello:v2")
    with shop.visitors() as heard:
        report = shop.rollback()
    assert heard.lost == 0, heard.losses
    assert report.release == 3
    assert shop.get().text == "Hi there, I love ! app1,v1"
    assert shop.containers() == {"3-1": "running", "2-1": "exited", "2-2": "exited"}
