"""Somebody's own nginx: a container that nonstop did not make and that serves another site too."""

from __future__ import annotations

import io
import tarfile
import time
from typing import Any

import httpx

from tests.lab.images import PROXY
from tests.lab.shop import Shop

MAIN = """
user www-data;
error_log /var/log/nginx/error.log;
events { worker_connections 1024; }
http {
    access_log off;
    include /etc/nginx/conf.d/*.conf;
}
"""
OTHER = """
server {
    listen 80;
    server_name other.example.com;
    location / { return 200 "the other site\\n"; }
}
"""


class OwnNginx:
    """Takes the place of a shop's proxy.

    Args:
        shop: whose proxy it becomes; its App names the container and creates none.
        main: text of nginx.conf.
        other: text of the other site's file; empty: there is none.
        log: driver and options, as the engine calls them; None: the engine's own.
        host: what else its host configuration has.
        container: what else the container is created with.
    """

    def __init__(
        self,
        shop: Shop,
        main: str = MAIN,
        other: str = OTHER,
        log: dict[str, Any] | None = None,
        host: dict[str, Any] | None = None,
        **container: Any,
    ) -> None:
        self.shop = shop
        api = shop.api
        api.create_container(
            PROXY,
            name=shop.proxy,
            ports=[80],
            labels={"nonstop.lab.shop": shop.name},
            host_config=api.create_host_config(
                port_bindings={80: ("127.0.0.1", shop.port)}, log_config=log, **(host or {})
            ),
            **({"command": ["nginx", "-g", "daemon off;"]} | container),
        )
        self.write({"nginx.conf": main} | ({"conf.d/other.conf": other} if other else {}))
        api.start(shop.proxy)
        shop.description["hosts"] = ["shop.example.com"]
        shop.description["proxy"] = {
            "container": shop.proxy,
            "network": shop.description["proxy"]["network"],
        }
        shop.host = "shop.example.com"

    def write(self, files: dict[str, str]) -> None:
        """Files below /etc/nginx have these texts."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        self.shop.api.put_archive(self.shop.proxy, "/etc/nginx", buffer.getvalue())

    def other(self) -> str:
        """What a visitor of the other site reads."""
        headers = {"Host": "other.example.com"}
        return httpx.get(self.shop.url, headers=headers, timeout=10, trust_env=False).text

    def files(self) -> str:
        """Checksums of every file of the configuration but ours."""
        return self.shop.exec(
            "find /etc/nginx -type f ! -name '*nonstop-*' -exec sha256sum {} + | sort"
        )


def until_it_answers(shop: Shop, seconds: float = 20) -> None:
    """The front door answers again after a restart."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if shop.get().is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the front door does not answer"
        time.sleep(0.1)
