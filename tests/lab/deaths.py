"""Runs that die, or whose world breaks, with visitors all the while; and a look from outside."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.recover import recover
from tasks.bluegreen.recovery import plan_recovery
from tasks.observe import observe
from tests.lab.command import Command, Process
from tests.lab.mortal import STEPS
from tests.lab.shop import Shop
from tests.lab.tally import Case

ROOT = Path(__file__).parents[2]
MORTAL = (sys.executable, "-c", "import flows.cli, tests.lab.mortal; flows.cli.main()")
ELSEWHERE = ("roll-back", "put-right", "ask-approval")
STEPS_OF_A_DEPLOY = [name for name in STEPS if name not in ELSEWHERE]
MOMENTS = [(step, when) for step in STEPS_OF_A_DEPLOY for when in ("before", "after")]
KINDS = ("get", "fresh", "post")
PATIENCE = 180.0


STORIES: dict[str, dict[str, Any]] = {  # what dies, and how its green is verified
    "deploy": {},
    "bad deploy": {"status": [418]},  # it goes back by itself
    "rollback": {},
    "recover": {},  # of what a deploy left that was killed after its cutover
}


class Deaths:
    """Runs that die, one after the other, of one shop."""

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
        *,
        story: str = "deploy",
        then: str = "recover",
        **told: Any,
    ) -> Case:
        """One run that dies as told; then another one, and a look from outside.

        Args:
            way: what `mortal.py` does, or any word that tells what `meddle` does.
            meddle: breaks the world when the moment has come.
            silence: seconds for which nobody may serve, so that requests are lost; 0: none is.
            mend: puts the world in order again after the run has ended.
            story: what dies, of STORIES.
            then: what comes afterwards: recover, or a deploy straight on what is left.
            told: the moment.
        """
        shop, number = self.shop, len(self.cases) + 1
        place = self.told.with_name("reached")
        release = {"RELEASE": f"{number}"}
        self.command.describe(environment=release, verify={"bake_time": 1} | STORIES[story])
        if story == "rollback" and not self._kept():
            shop.deploy("another")
        with shop.visitors(rate=100, kinds=KINDS) as heard:
            if story == "recover":
                self._tell("SIGKILL", step="reload-nginx", when="after")
                assert self._start("deploy").wait(PATIENCE) == -signal.SIGKILL
            before, kept = shop.live(), self._kept()
            self._tell(way, **{"when": "before", "target": str(place), **told})
            self.process = self._start(story.split()[-1])
            try:
                if meddle is not None:
                    reached(place, self.process)
                    meddle()
                    place.unlink()
                _, err = self.process.communicate(timeout=PATIENCE)
            finally:
                self.process.kill()
            if mend is not None:
                mend()
            ended = time.monotonic()
            if then == "recover":
                recover(shop.name, wait=60)
            else:
                shop.deploy(f"{number} again")
            seconds = time.monotonic() - ended
        code = self.process.returncode
        who = "the next" if then != "recover" else self._serves(story, before)
        figures = seconds, heard.requests, heard.lost, heard.silence
        case = Case(f"{way} {story} {told}", code, *figures, who)
        self.cases.append(case)
        assert heard.silence <= silence if silence else heard.lost == 0, (case, heard.losses, err)
        nobody = {""} if silence else set()  # nginx's own answer
        assert set(heard.releases) <= self._names() | nobody, (case, heard.releases)
        assert "Traceback" not in err or way == "SIGKILL", err
        ensure_clean(shop)
        if then != "recover":
            assert shop.releases() == {f"{number} again"}, (case, err)
            assert self._kept() in heard.releases, (case, "what is kept has never served")
        elif code == 0:
            assert shop.releases() == {kept if story == "rollback" else f"{number}"}, (case, err)
        elif code in (1, 2):
            assert shop.live() == before or "Cleanup is pending" in err, (case, err)
        if code == 3:
            assert "person has to look" in " ".join(err.split()), (case, err)
        assert code in (0, 1, 2, 3, -signal.SIGKILL), (case, err)
        return case

    def _tell(self, way: str, **told: Any) -> None:
        self.told.write_text(json.dumps({"way": way, **told}))

    def _start(self, command: str) -> Process:
        return self.command.start(command, self.shop.name, "--wait", "20", program=MORTAL)

    def _serves(self, story: str, before: int | None) -> str:
        """Whose release serves after a recovery: of the run that died, or what was before it."""
        same = self.shop.live() == before
        return "green" if same == (story == "recover") else "blue"

    def _kept(self) -> str:
        """What the newest release before the live one calls itself; empty: there is none."""
        live = self.shop.live() or 0
        older = {int(name.partition("-")[0]) for name in self.shop.containers()} - {live}
        if not older:
            return ""
        seen = self.shop.api.inspect_container(self.shop.container(f"{max(older)}-1"))
        variables = dict(entry.partition("=")[::2] for entry in seen["Config"]["Env"])
        return str(variables["RELEASE"])

    def _names(self) -> set[str]:
        """What releases have called themselves so far."""
        numbers = range(1, len(self.cases) + 1)
        return {"zero", "another", *(f"{n}" for n in numbers), *(f"{n} again" for n in numbers)}


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
