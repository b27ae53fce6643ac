"""Everything for one host in one process tree, in the foreground: `nonstop up`."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prefect.settings import PREFECT_HOME

from flows.parts import STARTUP, Part, Parts, answers, tell
from flows.runner import served
from tasks.bluegreen.errors import EXIT_CODES, Failed, Unavailable

FIRST, LONGEST = 1.0, 30.0  # seconds until a part that ended is started again: doubled each time
STEADY = 60.0  # seconds after which a part counts as well again
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def up(parts: Parts) -> None:
    """Runs the parts until SIGTERM or Ctrl-C; then runs have gone back, and every part has ended.

    Raises:
        BadInput: the inventory cannot be run as it is.
        Unavailable: this host has a `nonstop up` already, a port is taken, or the server that
            PREFECT_API_URL names does not answer.
        Failed: a part does not start, or had to be killed.
    """
    served(parts.file)
    with _alone():
        if parts.server:
            parts.server.ensure_free("Prefect server", "--server")
        elif not asyncio.run(answers(parts.api, 10, asyncio.Event())):
            raise Unavailable(
                f"No Prefect server answers at PREFECT_API_URL={parts.api}: start it, or unset "
                "PREFECT_API_URL to have one started."
            )
        parts.webhooks.ensure_free("webhook receiver", "--webhooks")
        asyncio.run(_Up(parts).run())


@contextmanager
def _alone() -> Iterator[None]:
    """Within, this is the only `nonstop up` with this PREFECT_HOME; the kernel lets go of it."""
    path = Path(PREFECT_HOME.value()) / "nonstop-up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Unavailable(
                f"`nonstop up` runs on this host already, as process {lock.read()}."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class _Up:
    """The parts while they run."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.stop = asyncio.Event()
        environment = parts.environment()
        self.kept = [_Kept(part, parts.folder, environment, self.stop) for part in parts.all()]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                loop.add_signal_handler(number, self._signalled)
        try:
            for kept in self.kept:
                if not self.stop.is_set():
                    kept.start()
                if kept.part.name == "server":
                    await self._server()
            await self.stop.wait()
        finally:
            self.stop.set()
            killed = [kept.part.name for kept in reversed(self.kept) if not await kept.end()]
        failed = next((kept.failed for kept in self.kept if kept.failed), None)
        if failed:
            raise failed
        if killed:
            raise Failed(f"The {' and the '.join(killed)} did not end in time and was killed.")
        tell("nonstop  stopped")

    async def _server(self) -> None:
        if not await answers(self.parts.api, STARTUP, self.stop) and not self.stop.is_set():
            raise Failed(f"The Prefect server does not answer after {STARTUP:g} s.")

    def _signalled(self) -> None:
        if self.stop.is_set():
            tell("nonstop  still stopping: a deploy that is cut short now could not go back")
        else:
            self.stop.set()
            tell("nonstop  stopping; a deploy that runs goes back first")


class _Kept:
    """A part that is started again, later and later, whenever it ends by itself."""

    def __init__(
        self, part: Part, folder: Path, environment: dict[str, str], stop: asyncio.Event
    ) -> None:
        self.part, self.folder, self.environment, self.stop = part, folder, environment, stop
        self.failed: Exception | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.groups: set[int] = set()  # of its processes: a deploy outlives a runner that is killed
        self.watches: set[asyncio.Task[None]] = set()
        self.keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """It is kept running from now on."""
        self.keeping = asyncio.create_task(self._keep())

    async def end(self) -> bool:
        """It has ended, and what it had started; False if it had to be killed."""
        deadline = time.monotonic() + self.part.stop_limit
        if self.keeping is None:
            return True
        if self.process and self.process.returncode is None:
            self.process.terminate()  # alone: what it started it ends itself
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.keeping), self.part.stop_limit)
        for group in self.groups:
            _signal(group, signal.SIGTERM)  # what it left, or one before it that was killed
        while self.groups:
            if time.monotonic() > deadline:
                for group in self.groups:
                    _signal(group, signal.SIGKILL)
                return False
            await asyncio.sleep(0.1)
        return True

    async def _keep(self) -> None:
        delay = FIRST
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                code = await self._run()
            except OSError as error:  # no memory, no processes, no file descriptors left
                how = f"could not be started ({error.strerror})"
            else:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                how = f"ended by {how}"
                if code == EXIT_CODES["refused"] and not self.stop.is_set():
                    self.failed = Unavailable(f"The {self.part.name} cannot run, as it says above.")
                    self.stop.set()
            if self.stop.is_set():
                return
            delay = FIRST if time.monotonic() - began > STEADY else delay
            tell(f"nonstop  the {self.part.name} {how}; it starts again in {delay:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), delay)
            delay = min(delay * 2, LONGEST)

    async def _run(self) -> int:
        """Its exit code, once it has ended.

        Raises:
            OSError: it could not be started.
        """
        self.process = process = await asyncio.create_subprocess_exec(
            *self.part.command,
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for us: runs end by SIGTERM
            preexec_fn=_end_with_parent,
        )
        self.groups.add(process.pid)
        relay = asyncio.create_task(self._relay(process))
        code = await process.wait()
        watch = asyncio.create_task(self._forget(process.pid))
        self.watches.add(watch)
        watch.add_done_callback(self.watches.discard)
        with suppress(TimeoutError):  # a process that outlives it may hold the pipe
            await asyncio.wait_for(relay, 1)
        return code

    async def _forget(self, group: int) -> None:
        """The group is forgotten as soon as it is empty: its number may be given to others then."""
        while _signal(group, 0):
            await asyncio.sleep(0.1)
        self.groups.discard(group)

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Its lines with its name before them, without the empty ones and drawings."""
        assert process.stdout
        while not process.stdout.at_eof():
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # too long for one line; what is left of it comes next
            text = line.decode(errors="replace").rstrip()
            if any(letter.isalnum() for letter in text):
                tell(f"{self.part.name:8} {text}")


def _signal(group: int, number: int) -> bool:
    """Whether there is anybody in that process group; they were sent the signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_with_parent() -> None:
    """On Linux the kernel sends this process SIGTERM when `nonstop up` itself is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
