"""What the proxy shows of one app: what its scripts LOOK and SERVES printed, read."""

from __future__ import annotations

import re
from typing import NamedTuple

from tasks.bluegreen.commands import Output
from tasks.bluegreen.errors import EngineHiccup, Unavailable
from tasks.bluegreen.model import Live


class Look(NamedTuple):
    """What the proxy shows of one app."""

    version: tuple[int, ...]
    free: int  # bytes, on the disk where containers and images are
    curl: bool  # whether it has one
    live: Live | None
    site: str | None
    before: str | None  # what the site's file was before
    holder: str  # who changes the app now; empty: nobody
    left: tuple[str, ...]  # who held the lock since a run ended well, and did not


def read_look(app: str, proxy: str, output: Output) -> Look:
    """What LOOK printed in the container `proxy`.

    Raises:
        Unavailable: there is no nginx that answers, or not the programs that a deploy needs there.
        EngineHiccup: it broke off.
    """
    head, *files = output.text.split("\n--file\n", 2)
    if output.code == 0 and len(files) != 2:
        raise _broke_off(proxy, output)
    live = read_live(app, proxy, output._replace(text=head))
    site, before = files
    numbers = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", head)
    free = re.search(r"^--disk\n(\d+)$", head, re.MULTILINE)
    held = re.search(r"^--held (.+)$", head, re.MULTILINE)
    return Look(
        version=tuple(map(int, numbers.groups())) if numbers else (),
        free=int(free[1]) * 1024 if free else 0,
        curl="\n--curl\n" in head,
        live=live,
        site=site or None,
        before=before or None,
        holder=held[1] if held else "",
        left=tuple(re.findall(r"^--left (.+)$", head, re.MULTILINE)),
    )


def read_live(app: str, proxy: str, output: Output) -> Live | None:
    """What SERVES printed in the container `proxy`; None: its nginx has no site of `app`.

    Raises:
        Unavailable: there is no nginx that answers, or no HTTP client to ask it.
        EngineHiccup: it broke off.
    """
    if output.code == 98:
        raise Unavailable(
            f"There is no nginx in {proxy}: name the nginx container in proxy.container."
        )
    if output.code == 97:
        raise Unavailable(
            f"The proxy {proxy} has neither curl nor wget, with which its nginx is asked what it "
            "serves: use an image with one."
        )
    if output.code == 96:
        raise Unavailable(
            f"The proxy {proxy} has no {output.text}, which a deploy needs there: use an image "
            "with coreutils, grep, sed, awk and util-linux, or with busybox."
        )
    if output.code != 0:
        raise _broke_off(proxy, output)
    _, answered, status = output.text.partition("--status\n")
    if not answered and not output.text.endswith("--refused"):
        code = output.text.rpartition("--silent ")[2]
        raise Unavailable(
            f"nginx in {proxy} does not answer on its own loopback (its client ended with {code}): "
            f"look at its load and at `docker logs {proxy}`, then try again."
        )
    said = status.split()
    return Live(number=int(said[1]), generation=said[2]) if said[:1] == [app] else None


def _broke_off(proxy: str, output: Output) -> EngineHiccup:
    return EngineHiccup(
        f"Asking {proxy} what it serves broke off (exit code {output.code}): "
        f"{output.text.strip()[-300:] or 'nothing was said'}."
    )
