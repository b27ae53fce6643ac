"""A shell held open in a container: a script in it takes 3 ms, one more exec of the engine 40."""

from __future__ import annotations

import base64
import secrets
import shlex
from collections.abc import Mapping
from contextlib import suppress

from tasks.bluegreen.commands import Output, Session
from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.errors import EngineHiccup

LIFE = "14400"  # seconds: a shell whose engine forgot it ends by itself
SERVE = r"""
while read -r token script; do
    script=$(printf %s "$script" | base64 -d) || exit
    (eval "$script") </dev/null 2>&1
    printf '\n--%s %s--%s\n' "$token" "$?" "$token"
done
"""


class Shell:
    """Runs one script after another in a container, each in a process of its own.

    Raises:
        EngineHiccup: it could not be started.
    """

    def __init__(self, container: str) -> None:
        self._engine = Engine()
        self._session: Session = self._engine.session(
            container, ["timeout", LIFE, "sh", "-c", SERVE]
        )

    def run(self, script: str, environment: Mapping[str, str], timeout: float) -> Output | None:
        """What a script printed; None if the shell is no more.

        Raises:
            TimeoutError: it did not end in so many seconds.
        """
        token = secrets.token_hex(8)
        exports = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in environment.items())
        sent = base64.b64encode(f"{exports}\n{script}".encode()).decode()
        try:
            self._session.say(f"{token} {sent}\n")
            heard = self._session.hear(timeout, until=f"--{token}\n")
        except TimeoutError:
            raise
        except OSError:
            return None
        text, marked, end = heard.rpartition(f"\n--{token} ")
        return Output(int(end.partition("-")[0]), text) if marked else None

    def close(self) -> None:
        """It ends."""
        self._session.close()
        self._engine.api.close()


class Shells:
    """At most one shell a container, for as long as a run lasts."""

    def __init__(self) -> None:
        self._idle: dict[str, Shell] = {}

    def run(
        self,
        engine: Engine,
        container: str,
        script: str,
        environment: dict[str, str],
        seconds: float,
    ) -> Output:
        """What a script printed, in the container's shell or, if that is gone, in an exec.

        Args:
            engine: for the exec.
            container: its id.
            script: for `sh`; without an effect that must not come twice.
            environment: variables for it.
            seconds: for the whole of it.

        Raises:
            EngineHiccup: it could not be started, or did not end in time.
        """
        shell = self._idle.pop(container, None)
        with suppress(EngineHiccup):  # the exec below will say it, if it lasts
            shell = shell or Shell(container)
        if shell is not None:
            output = None
            try:
                with engine_words(f"run sh in {container[:12]}"):
                    output = shell.run(script, environment, seconds)
            finally:
                if output is None or self._idle.setdefault(container, shell) is not shell:
                    shell.close()
            if output is not None:
                return output
        command = ["sh", "-c", script]
        return engine.exec(container, command, environment=environment, timeout=seconds)

    def close(self) -> None:
        """None is left."""
        while self._idle:
            self._idle.popitem()[1].close()


SHELLS = Shells()
