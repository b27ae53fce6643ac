"""The nonstop command, and the flow that a runner starts, which die where they are told.

The file that MORTAL names says where and how, as JSON: `step` (a task's name) or `effect` (the
how-manieth change that the engine is asked for, or the first by a call of that name), `when`
(before or after it), and `way`. What it has to do with the world (a server to stop, a database to
lock) is in `target`. With `record`, the changes are written there instead.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from prefect import Task
from prefect.runtime import flow_run

import flows.deploy
import flows.recover
import flows.way_back
from tasks.bluegreen.nginx import Nginx
from tasks.bluegreen.scripts import WRITE
from tasks.bluegreen.shell import Shell
from tests.lab.served import cancel

MODULES = (flows.deploy, flows.way_back, flows.recover)
STEPS: dict[str, Task[..., Any]] = {
    task.name: task
    for module in MODULES
    for task in vars(module).values()
    if isinstance(task, Task)
}
EFFECTS = (  # calls that change something in the engine or in the proxy
    "create_container_from_config",
    "put_archive",
    "start",
    "stop",
    "remove_container",
    "update_container",
)
HANG = 600.0  # seconds; something ends it long before


class Struck(Exception):
    """The exception that nobody expects."""


class Mortal:
    """What is told in the file, once."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.struck = False
        self.numbers = itertools.count(1)

    def strike(self) -> None:
        """The run dies, or the world around it changes; only once."""
        if self.struck:
            return
        self.struck = True
        if mark := self.told.get("mark"):
            Path(mark).touch()
        way, target = self.told["way"], self.told.get("target")
        if way == "exception":
            raise Struck("struck")
        if way in ("SIGKILL", "SIGTERM"):
            os.kill(os.getpid(), signal.Signals[way])
            time.sleep(HANG)
        elif way in ("task time-out", "flow time-out"):
            for _ in range(int(HANG)):  # within a flow's time-out a task's interrupts no call
                time.sleep(1)
        elif way == "cancel":
            cancel(str(flow_run.id))
            time.sleep(HANG)
        elif way == "server killed":
            os.killpg(int(str(target)), signal.SIGKILL)
        elif way == "server silent":
            os.killpg(int(str(target)), signal.SIGSTOP)
        elif way == "database locked":
            if os.fork() == 0:  # the lock is another process's
                database = sqlite3.connect(str(target), timeout=10)
                database.execute("BEGIN EXCLUSIVE")
                time.sleep(8)
                os._exit(0)
            time.sleep(0.5)
        else:
            Path(str(target)).touch()  # the test does something to the world
            while Path(str(target)).exists():
                time.sleep(0.05)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the strike before or after it."""

        @functools.wraps(function)
        def mortal(*args: Any, **kwargs: Any) -> Any:
            if self.told["when"] == "before":
                self.strike()
            value = function(*args, **kwargs)
            if self.told["when"] == "after":
                self.strike()
            return value

        return mortal

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A call of the engine's, of which the n-th one is fatal."""
        fatal = self.around(function)

        @functools.wraps(function)
        def call(api: Any, *args: Any, **kwargs: Any) -> Any:
            number = next(self.numbers)
            if record := self.told.get("record"):
                with Path(record).open("a") as file:
                    file.write(f"{name}\n")
            if self.told.get("effect") in (number, name):
                return fatal(api, *args, **kwargs)
            return function(api, *args, **kwargs)

        return call

    def written(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`Shell.run`, of whose scripts the one that writes the site counts."""
        write = self.counted("write", run)

        @functools.wraps(run)
        def run_it(shell: Shell, script: str, *args: Any, **kwargs: Any) -> Any:
            return (write if script == WRITE else run)(shell, script, *args, **kwargs)

        return run_it

    def lay(self) -> None:
        """The steps and the engine's calls are as told from now on."""
        if step := self.told.get("step"):
            STEPS[step].fn = self.around(STEPS[step].fn)
            if self.told["way"] == "task time-out":
                STEPS[step].timeout_seconds = 1.0 if self.told["when"] == "before" else 6.0
        if self.told["way"] == "flow time-out":
            flows.deploy.deploy.timeout_seconds = 12.0
        api: Any = docker.APIClient
        for name in EFFECTS:
            setattr(api, name, self.counted(name, getattr(api, name)))
        proxy: Any = Nginx
        shell: Any = Shell
        shell.run = self.written(shell.run)
        proxy.hup = self.counted("hup", proxy.hup)


if os.environ.get("MORTAL"):
    Mortal(json.loads(Path(os.environ["MORTAL"]).read_text())).lay()
deploy, rollback = flows.deploy.deploy, flows.deploy.rollback
