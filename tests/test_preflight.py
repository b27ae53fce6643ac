"""A site is tried on a copy of the proxy's configuration, whatever that is like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.bluegreen.containers import Engine
from tasks.bluegreen.errors import SiteRejected, Unavailable
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.site import render_site
from tests.lab.command import Command
from tests.lab.nginx import MAIN, OTHER, OwnNginx
from tests.lab.shop import Shop

INCLUDE = "include /etc/nginx/conf.d/*.conf;"
WAYS = {  # how nginx may come to the sites -> files below /etc/nginx
    "include conf.d/*.conf;": {},
    "include ../nginx/conf.d/*.conf;": {},
    "include\n    '/etc/nginx/conf.d/*.conf';": {},
    "include /etc//nginx/conf.d/*.conf; include /etc/nginx/none/*.conf; # include /etc/passwd;": {},
    "include conf.d/nonstop-*.conf; include /etc/nginx/conf.d/o*;": {},
    "include http/*.conf; include mime.types;": {"http/a.conf": INCLUDE},
    "include /etc/nginx/http/a.conf;": {"http/a.conf": "include http/b/*;", "http/b/c": INCLUDE},
}


def check(shop: Shop) -> None:
    """The proxy's own nginx tries a site of the shop's."""
    with Engine() as engine:
        Nginx(engine, shop.app().proxy).check(render_site(shop.app(), 1, ("10.0.0.1",), (1, 30, 0)))


@contextmanager
def nothing_left(shop: Shop) -> Iterator[None]:
    """Within, no file comes or goes in the proxy where sites and copies of them are."""
    listing = "ls -AR /etc/nginx /dev/shm /tmp /var/tmp 2>/dev/null | grep -v '[.]lock'"
    before = shop.exec(listing)
    yield
    assert shop.exec(listing) == before


def test_a_directory_of_any_size_and_whatever_is_in_it_is_no_hindrance(shop: Shop) -> None:
    OwnNginx(
        shop,
        main=MAIN.replace("user www-data;", "pid /run/nginx.pid;"),
        host={"tmpfs": dict.fromkeys(("/run", "/var/lib/nginx", "/var/cache/nginx"), "uid=33")},
        user="www-data",
    )
    made = shop.api.exec_create(
        shop.proxy,
        ["sh", "-c", "cd /etc/nginx; head -c 80M /dev/zero >geo.mmdb; touch key; chmod 0 key"],
        user="0",
    )
    assert not shop.api.exec_start(made["Id"])
    with nothing_left(shop):
        check(shop)
    shop.deploy("one")
    assert shop.releases() == {"one"}


def test_a_main_configuration_in_the_root_directory_is_copied_without_the_rest(shop: Shop) -> None:
    start = "cp /etc/nginx/nginx.conf / && exec nginx -c /nginx.conf -g 'daemon off;'"
    OwnNginx(shop, command=["sh", "-c", start])
    for include in (INCLUDE, "include conf.d/*.conf;"):
        shop.exec(f"echo '{MAIN.replace(INCLUDE, include)}' > /nginx.conf")
        check(shop)
    shop.deploy("one")
    shop.exec("echo lisen >> /nginx.conf")
    with pytest.raises(Unavailable, match="does not load as it is") as caught:
        check(shop)
    assert "in /nginx.conf:" in caught.value.evidence
    assert shop.releases() == {"one"}


def test_the_site_is_tried_by_whatever_way_nginx_comes_to_it(shop: Shop) -> None:
    nginx = OwnNginx(shop)
    for include, files in WAYS.items():
        nginx.write(files | {"nginx.conf": MAIN.replace(INCLUDE, include)})
        with nothing_left(shop):
            check(shop)
        shop.exec("rm -rf /etc/nginx/http")
    nginx.write({"nginx.conf": MAIN})
    shop.exec("mv /etc/nginx/conf.d /sites && ln -s /sites /etc/nginx/conf.d")
    with nothing_left(shop):
        check(shop)
    assert shop.exec("ls /sites").split() == ["other.conf"]
    nginx.write({"nginx.conf": MAIN.replace(INCLUDE, "include conf.d/o*.conf;")})
    with nothing_left(shop), pytest.raises(SiteRejected, match="does not read /etc/nginx/conf"):
        check(shop)


def test_where_no_copy_can_be_made_that_is_what_is_said(shop: Shop) -> None:
    nginx = OwnNginx(shop)
    shop.exec("cat /dev/zero > /dev/shm/full")
    check(shop)  # on a copy in /tmp
    shop.exec("rm -r /tmp /var/tmp")
    with nothing_left(shop), pytest.raises(Unavailable, match="no copy of the conf") as caught:
        shop.deploy("one")
    assert "No space left on device" in caught.value.evidence
    assert "/tmp/nonstop" in caught.value.evidence
    assert shop.containers() == {}
    nginx.write({"conf.d/broken.conf": "lisen 80;"})  # which is found without a copy
    with Engine() as engine, pytest.raises(Unavailable, match="does not load as it is") as caught:
        Nginx(engine, shop.app().proxy).check(None)
    assert 'unknown directive "lisen"' in caught.value.evidence


def test_sites_that_are_mounted_read_only_are_refused_before_anything_is_touched(
    command: Command, tmp_path: Path
) -> None:
    shop = command.shop
    sites = tmp_path / "conf.d"
    sites.mkdir()
    (sites / "other.conf").write_text(OTHER)
    nginx = OwnNginx(shop, other="", host={"binds": [f"{sites}:/etc/nginx/conf.d:ro"]})
    sentence = (
        f"No site can be put into /etc/nginx/conf.d in {shop.proxy} (Read-only file system): "
        "mount it writable, or set proxy.directory to one that is and that nginx includes."
    )
    with pytest.raises(Unavailable) as caught:
        shop.deploy("one")
    assert caught.value.what == f"{sentence} Nothing was touched."
    command.describe()
    _, err = command.run("plan", shop.name, code=2)
    assert sentence in " ".join(err.split())
    assert shop.containers() == {}
    assert nginx.other() == "the other site\n"
    include = f"{INCLUDE} include /etc/nginx/sites/*.conf;"
    nginx.write({"nginx.conf": MAIN.replace(INCLUDE, include)})
    shop.exec("mkdir /etc/nginx/sites")
    shop.deploy("one", proxy={"directory": "/etc/nginx/sites"})
    assert shop.releases() == {"one"}
    assert shop.exec("ls -A /etc/nginx/sites").split() == [f"nonstop-{shop.name}.conf"]
