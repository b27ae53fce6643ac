"""Deploys that die, or whose world breaks, with visitors all the while; and a look from outside."""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flows.recover import recover
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab.command import Command, Process
from tests.lab.mortal import STEPS
from tests.lab.shop import Shop

ROOT = Path(__file__).parents[2]
MORTAL = (sys.executable, "-c", "import flows.cli, tests.lab.mortal; flows.cli.main()")
ELSEWHERE = ("roll-back", "put-right", "ask-approval")
STEPS_OF_A_DEPLOY = [name for name in STEPS if name not in ELSEWHERE]
MOMENTS = [(step, when) for step in STEPS_OF_A_DEPLOY for when in ("before", "after")]
KINDS = ("get", "fresh", "post")
PATIENCE = 180.0


class Case(NamedTuple):
    """What became of one death."""

    what: str
    code: int
    seconds: float  # from the death until all is clean
    requests: int
    lost: int
    silence: float  # seconds of the longest time without a right answer


class Deaths:
    """Deploys that die, one after the other, of one shop."""

    def __init__(self, command: Command, folder: Path) -> None:
        self.command, self.shop = command, command.shop
        self.told = folder / "told"
        self.command.environment |= {"MORTAL": str(self.told), "PYTHONPATH": str(ROOT)}
        self.cases: list[Case] = []
        self.shop.deploy("zero")

    def die(
        self,
        way: str,
        meddle: Callable[[], object] | None = None,
        silence: float = 0,
        mend: Callable[[], object] | None = None,
        **told: Any,
    ) -> Case:
        """One deploy that dies as told; then recovery, on its own, and a look from outside.

        Args:
            way: what `mortal.py` does, or any word that tells what `meddle` does.
            meddle: breaks the world when the moment has come.
            silence: seconds for which nobody may serve, so that requests are lost; 0: none is.
            mend: puts the world in order again after the deploy has ended.
            told: the moment.
        """
        shop, before = self.shop, self.shop.live()
        number = len(self.cases) + 1
        place = self.told.with_name("reached")
        self.told.write_text(
            json.dumps({"way": way, "when": "before", "target": str(place), **told})
        )
        self.command.describe(environment={"RELEASE": f"{number}"}, verify={"bake_time": 1})
        with shop.visitors(rate=100, kinds=KINDS) as heard:
            process = self.command.start("deploy", shop.name, program=MORTAL)
            try:
                if meddle is not None:
                    reached(place, process)
                    meddle()
                    place.unlink()
                _, err = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
            if mend is not None:
                mend()
            ended = time.monotonic()
            recover(shop.name, wait=60)
            seconds = time.monotonic() - ended
        case = Case(
            f"{way} {told}",
            process.returncode,
            seconds,
            heard.requests,
            heard.lost,
            heard.silence,
        )
        self.cases.append(case)
        assert heard.silence <= silence if silence else heard.lost == 0, (case, heard.losses, err)
        nobody = {""} if silence else set()  # nginx's own answer
        served = {f"{number}", *self.releases()} | nobody
        assert set(heard.releases) <= served, (case, heard.releases)
        assert "Traceback" not in err or way == "SIGKILL", err
        ensure_clean(shop)
        if process.returncode == 0:
            assert shop.releases() == {f"{number}"}, (case, err)
        elif process.returncode in (1, 2):
            assert shop.live() == before or "Cleanup is pending" in err, (case, err)
        elif process.returncode == 3:
            assert "A person has to look" in " ".join(err.split()), (case, err)
        else:
            assert process.returncode == -signal.SIGKILL, (case, err)
        return case

    def releases(self) -> set[str]:
        """What the live release and those before it call themselves."""
        return {"zero", *(str(number) for number in range(1, len(self.cases) + 1))}

    def tell(self) -> None:
        """The figures, for whoever runs pytest with -s."""
        if not self.cases:
            return
        seconds = [case.seconds for case in self.cases]
        print(
            f"\n{len(self.cases)} deaths, {sum(c.requests for c in self.cases)} requests, "
            f"{sum(c.lost for c in self.cases)} lost, nobody served for at most "
            f"{max(c.silence for c in self.cases):.1f} s; clean after "
            f"{statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (worst)"
        )


def reached(place: Path, process: Process) -> None:
    """The run is at the moment, and waits there."""
    deadline = time.monotonic() + PATIENCE
    while not place.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ensure_clean(shop: Shop) -> None:
    """From outside: one release serves, runs alone, and nothing is left to be put right."""
    number = shop.live()
    assert number is not None
    running = {name for name, state in shop.containers().items() if state == "running"}
    assert running == {f"{number}-1", f"{number}-2"}
    assert len(shop.containers()) <= 4
    assert not plan_recovery(observe.fn(shop.name)).needed
    assert "successful" in shop.exec("nginx -t -c /etc/nginx/nonstop/nginx.conf 2>&1")
    files = shop.exec("cd /etc/nginx/nonstop/sites && find . -type f | sort").split()
    assert set(files) <= {f"./nonstop-{shop.name}.conf", f"./.nonstop-{shop.name}.conf.before"}
