"""A shell held open in a container: a script in it takes 3 ms, one more exec of the engine 40."""

from __future__ import annotations

import base64
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tasks.bluegreen.commands import Output, Session
from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.errors import EngineHiccup, Unavailable

LIFE = "14400"  # seconds: a shell whose engine forgot it ends by itself
ALIVE = 5.0  # seconds in which a shell has to say that it is there
SERVE = r"""
while read -r token place script; do
    script=$(printf %s "$script" | base64 -d) || exit
    case $place in
        own) eval "$script" 2>&1 ;;
        *) (eval "$script") </dev/null 2>&1 8>&- ;;
    esac
    printf '\n--%s %s--%s\n' "$token" "$?" "$token"
done
"""


class Shell:
    """Runs one script after another in a container, in a process of its own or the shell's.

    Args:
        container: its id.
        user: user name or id; empty: the container's own.

    Raises:
        EngineHiccup: it could not be started.
    """

    def __init__(self, container: str, user: str = "") -> None:
        try:
            self._engine = Engine()
        except Unavailable as error:  # it was there a moment ago
            raise EngineHiccup(error.what) from error
        self._session: Session = self._engine.session(
            container, ["timeout", LIFE, "sh", "-c", SERVE], user=user
        )
        self.waits = True  # for a script; not after one whose end was not heard

    def run(
        self, script: str, environment: Mapping[str, str], timeout: float, *, own: bool = False
    ) -> Output | None:
        """What a script printed; None if the shell is no more.

        Args:
            script: for `sh`.
            environment: variables for it.
            timeout: seconds for the whole of it.
            own: in the shell's own process: files that it opens stay open for the next script.

        Raises:
            TimeoutError: it did not end in time.
        """
        token = secrets.token_hex(8)
        export = "" if own else "export "
        variables = "\n".join(f"{export}{k}={shlex.quote(v)}" for k, v in environment.items())
        sent = base64.b64encode(f"{variables}\n{script}".encode()).decode()
        self.waits = False
        try:
            self._session.say(f"{token} {'own' if own else 'child'} {sent}\n")
            heard = self._session.hear(timeout, until=f"--{token}\n")
        except TimeoutError:
            raise
        except OSError:
            return None
        text, marked, end = heard.rpartition(f"\n--{token} ")
        self.waits = bool(marked)
        return Output(int(end.partition("-")[0]), text) if marked else None

    def answers(self) -> bool:
        """Whether there is still one."""
        try:
            return self.run(":", {}, ALIVE) is not None
        except TimeoutError:
            return False

    def close(self) -> None:
        """It ends."""
        self._session.close()
        self._engine.api.close()


class Shells:
    """At most one shell a container and user, for as long as a run lasts."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], Shell] = {}

    @contextmanager
    def one(self, container: str, user: str = "") -> Iterator[Shell]:
        """A shell that nobody else uses meanwhile; it ends if this is left by an error.

        Args:
            container: its id.
            user: user name or id; empty: the container's own.

        Raises:
            EngineHiccup: it could not be started.
        """
        shell = self._idle.pop((container, user), None)
        try:
            if shell is not None and not shell.answers():
                shell.close()
                shell = None
            shell = shell or Shell(container, user)
            yield shell
        except BaseException:
            if shell is not None:
                shell.close()
            raise
        self._give((container, user), shell)

    def _give(self, whose: tuple[str, str], shell: Shell) -> None:
        if not shell.waits or self._idle.setdefault(whose, shell) is not shell:
            shell.close()

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
        shell = self._idle.pop((container, ""), None)
        with suppress(EngineHiccup):  # the exec below will say it, if it lasts
            shell = shell or Shell(container)
        if shell is not None:
            output = None
            try:
                with engine_words(f"run sh in {container[:12]}"):
                    output = shell.run(script, environment, seconds)
            finally:
                self._give((container, ""), shell)
            if output is not None:
                return output
        command = ["sh", "-c", script]
        return engine.exec(container, command, environment=environment, timeout=seconds)

    def close(self) -> None:
        """None is left."""
        while self._idle:
            self._idle.popitem()[1].close()


SHELLS = Shells()
