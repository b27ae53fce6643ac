"""The proxy's nginx: what it serves, a new site, the proof of a cutover."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tasks.bluegreen.app import Proxy
from tasks.bluegreen.commands import Output
from tasks.bluegreen.containers import Engine, engine_words
from tasks.bluegreen.errorlog import complaints, conflicting, refused
from tasks.bluegreen.errors import (
    CutoverUnproven,
    EngineHiccup,
    LockLost,
    SiteRejected,
    Unavailable,
)
from tasks.bluegreen.labels import config, joined
from tasks.bluegreen.look import Look, read_live, read_look
from tasks.bluegreen.model import Live, Site
from tasks.bluegreen.scripts import (
    ACCEPTING,
    CHECK,
    HUP,
    LOOK,
    PROXY_LOCK,
    SERVES,
    USED,
    WRITABLE,
    WRITE,
    lock_file,
)
from tasks.bluegreen.shell import SHELLS, Shell
from tasks.bluegreen.turn import turn

STATUS_PORT = 18099  # on the container's loopback: which generation is loaded
SITES = "/etc/nginx/nonstop/sites"  # in a proxy that nonstop created
MAIN = "/etc/nginx/nonstop/nginx.conf"
START = 0.1  # seconds that nginx gives new workers before it tells the old ones to leave
RELOAD = 15.0  # seconds until a reload has to be proven
WRITTEN = 15.0  # seconds until a site has to be, once it may
LARGEST_SITE = 100_000  # bytes: it travels in an environment variable, Linux allows 128 KiB

SERVER_NAME = re.compile(r"(?:^|[;{])\s*server_name\s+([^;]+);", re.MULTILINE)
MAINS: dict[tuple[str, int], str] = {}  # by the container's id, and the process it runs now
INIT = re.compile(r"^\S*\b(docker-init|tini|dumb-init)\b")  # they start nginx and nothing else


class Nginx:
    """The nginx in a running container.

    Raises:
        Unavailable: there is no such container, or it is stopped.
    """

    def __init__(self, engine: Engine, proxy: Proxy) -> None:
        self.engine, self.proxy = engine, proxy
        seen = engine.inspect(proxy.container)
        if seen is None:
            raise Unavailable(
                f"There is no proxy: no container is named {proxy.container}. Start your nginx, "
                "name it in proxy.container, or set proxy.image and nonstop creates one."
            )
        if seen["State"]["Status"] != "running":
            raise Unavailable(
                f"The proxy {proxy.container} is {seen['State']['Status']}: "
                f"start it with `docker start {proxy.container}`."
            )
        self.id: str = seen["Id"]
        self.seen = seen
        root = (config(seen, "User") or "0").partition(":")[0] in ("0", "root")
        self.own = ("", "0") if root else ("",)  # users as whom the container's shell runs
        self.ours = "nonstop.proxy" in (config(seen, "Labels") or {})
        self._shell: Shell | None = None  # which has the turn
        self.directory = proxy.directory or (SITES if self.ours else "/etc/nginx/conf.d")

    def main(self) -> str:
        """The configuration file that nginx was started with; empty: its default.

        Raises:
            Unavailable: the container's first process is not nginx.
        """
        process = self.id, self.seen["State"]["Pid"]
        if process in MAINS:  # to look takes the engine 20 ms
            return MAINS[process]
        titles = dict(self.engine.processes(self.id))
        first = titles.get(process[1], "nothing")
        master = next((t for t in titles.values() if t.startswith("nginx: master process")), None)
        if master is None or not (master == first or INIT.search(first)):
            raise Unavailable(
                f"The first process of {self.proxy.container} is not nginx ({first}): name the "
                "nginx container in proxy.container."
            )
        given = re.search(r"\s-c\s*(\S+?);?(\s|$)", master)
        MAINS[process] = given[1] if given else ""
        return MAINS[process]

    def address(self) -> str:
        """The proxy's IPv4 address on the network it shares with the replicas; or empty."""
        return str((joined(self.seen).get(self.proxy.network) or {}).get("IPAddress") or "")

    def networks(self) -> tuple[str, ...] | None:
        """Those that the proxy is on; None: it is on the host's, which reaches each of them."""
        host = self.seen["HostConfig"]["NetworkMode"] == "host"
        return None if host else tuple(joined(self.seen))

    def path(self, app: str) -> str:
        """Where an app's site is, in the container."""
        return f"{self.directory}/nonstop-{app}.conf"

    def look(self, app: str) -> Look:
        """The version, what the running nginx serves of `app`, and the site's text on disk.

        Raises:
            Unavailable: the container has no nginx that answers on its loopback, or not the
                programs that a deploy needs there.
        """
        look = self._look(app)
        if look.live is None and look.site is not None:
            # A file that is not loaded is left by a run that died; or nginx is just starting.
            if not self.accepting():
                raise Unavailable(
                    f"nginx in {self.proxy.container} has no worker that accepts connections: look "
                    f"at `docker logs {self.proxy.container}`, then try again."
                )
            look = self._look(app)
        return look

    def _look(self, app: str) -> Look:
        site = self.path(app)
        names = {
            "APP": app,
            "PORT": str(STATUS_PORT),
            "SITE": site,
            "BEFORE": _beside(site, "before"),
            "LOCK": lock_file(app),
        }
        return read_look(app, self.proxy.container, self.run(LOOK, names))

    def serves(self, app: str) -> Live | None:
        """What the running nginx serves of `app`.

        Raises:
            Unavailable: as `look`.
        """
        output = self.run(SERVES, {"APP": app, "PORT": str(STATUS_PORT)})
        return read_live(app, self.proxy.container, output)

    def check(self, site: Site | None) -> None:
        """The proxy's own nginx accepts the whole configuration with this site in it.

        It is tried on a copy; the live files are not touched. Without a site: as it is.

        Raises:
            SiteRejected: in nginx's words.
            Unavailable: the configuration is broken without the site, too; or it cannot be tried.
        """
        text = site.text if site else ""
        if len(text.encode()) > LARGEST_SITE:
            raise SiteRejected(
                f"The site has {len(text.encode())} bytes; {LARGEST_SITE} is the "
                "most that nonstop installs."
            )
        output = self.run(
            CHECK,
            {
                "CONF": self.main(),
                "DIRECTORY": self.directory,
                "TEXT": text,
                "NAME": f"nonstop-{site.app}.conf" if site else "",
            },
            timeout=60,
        )
        words = complaints(output.text)
        taken = conflicting(output.text) & _server_names(text)  # others' own don't concern us
        if output.code == 0 and not taken:
            return
        if output.code not in (0, 93, 95, 96):
            raise EngineHiccup(
                f"Trying the configuration of {self.proxy.container} broke off (exit code "
                f"{output.code}): {output.text.strip()[-300:] or 'nothing was said'}."
            )
        if site is None:
            raise Unavailable(
                f"The configuration of {self.proxy.container} does not load as it "
                "is: repair it first. Nothing was touched.",
                words,
            )
        if output.code == 93:
            raise Unavailable(
                f"{site.app}: no copy of the configuration of {self.proxy.container}, on which the "
                "site is tried, could be made in its /dev/shm, /tmp or /var/tmp: remove what is in "
                "the way.",
                "\n".join(dict.fromkeys(output.text.strip().splitlines())),
            )
        if output.code == 96:
            raise SiteRejected(
                f"nginx in {self.proxy.container} does not read "
                f"{self.directory}/*.conf: add `include {self.directory}/*.conf;` "
                "to its http block, or set proxy.directory."
            )
        if output.code == 0:
            raise SiteRejected(
                f"{site.app}: another site of {self.proxy.container} has its host name "
                f"{', '.join(sorted(taken))} already: change `hosts`, or, if this app takes over "
                "from that site, take the name out of its file without a reload, which the deploy "
                "does for both.",
                words,
            )
        self.check(None)
        raise SiteRejected(f"{site.app}: nginx in {self.proxy.container} rejects the site.", words)

    def unwritable(self) -> str:
        """Why no site can be put where nginx reads them, in one phrase; empty: it can."""
        names = {"DIRECTORY": self.directory}
        code, said = self.run(WRITABLE, names, "0")  # as whom `installed` does
        return "" if code == 0 else said.strip().rpartition(": ")[2] or f"exit code {code}"

    @contextmanager
    def installed(
        self, app: str, text: str | None, holder: str, *, unlocked: bool = False
    ) -> Iterator[None]:
        """The site's file has this text, or is gone; never half of it at any moment.

        While entered nobody else changes a site of this proxy, so that a reload is of one change.

        Args:
            app: whose site.
            text: of the site; None: it goes.
            holder: who must have the app's lock.
            unlocked: whether it is enough that nobody else has it.

        Raises:
            LockLost: somebody else has the lock, or nobody.
            EngineHiccup: it was not written, or nginx would read something else.
        """
        site = self.path(app)
        values = {
            "PROXY_LOCK": PROXY_LOCK,
            "HOLDER": holder,
            "LOCK": lock_file(app),
            "OR": "free" if unlocked else holder,
            "SITE": site,
            "NEW": _beside(site, "new"),
            "BEFORE": _beside(site, "before"),
            "TEXT": text or "",
        }
        own = "0" in self.own
        with turn(self.proxy.container, self.id, "" if own else "0", holder) as shell:
            with engine_words(f"write {site} in {self.proxy.container}"):
                written = shell.run(WRITE, values, WRITTEN, own=True)
            written = written or Output(1, "the shell was ended")
            if written.code == 94:
                raise LockLost(
                    f"{app}: the lock in {self.proxy.container} is no longer this run's "
                    f"(now: {written.text.strip()}), so the site was not changed: look at "
                    f"`nonstop status {app}`."
                )
            if written != Output(0, text or ""):
                raise EngineHiccup(
                    f"Writing {site} in {self.proxy.container} failed: "
                    f"{written.text.strip()[-300:] or 'it reads differently'}."
                )
            self._shell = shell if own else None
            try:
                yield
            finally:
                self._shell = None

    def accepting(self) -> set[int]:
        """Process ids of the workers that accept connections, as the container sees them.

        Raises:
            EngineHiccup: not all could be seen: a reload would be taken for proven.
        """
        said = self.run(ACCEPTING, {}).text.rstrip()
        if not said.endswith("--all"):
            raise EngineHiccup(
                f"The workers of nginx in {self.proxy.container} could not be listed: "
                f"{said[-300:] or 'nothing was said'}."
            )
        return {int(pid) for pid in re.findall(r"/proc/(\d+)/", said)}

    def reload(self, app: str, generation: str | None, *, patient: bool = False) -> None:
        """The running nginx has this generation of the app, and no worker accepts with another.

        Args:
            app: whose site changed.
            generation: the digest that has to answer; None: the app has no site any more.
            patient: don't give up as soon as nginx refuses: it may still be refusing the
                configuration before, whose ports it tries to bind for 2.5 s.

        Raises:
            CutoverUnproven: with nginx's own reason where it gave one.
            EngineHiccup: nginx was not told.
        """
        before = self.accepting()
        began, since = time.monotonic(), time.time()
        asked = 0.0
        clock = self.hup()
        time.sleep(START)
        while True:
            now = self.accepting()
            if now and not now & before:
                with suppress(Unavailable):  # the new workers are not yet ready
                    live = self.serves(app)
                    if (live.generation if live else None) == generation:
                        return
            waited = time.monotonic() - began
            if waited - asked > 1 or waited > RELOAD:
                asked = waited
                reason = self.complaints(since, clock)
                if (refused(reason) and not patient) or waited > RELOAD:
                    raise CutoverUnproven(
                        f"{app}: nginx in {self.proxy.container} did not take the new "
                        f"configuration within {waited:.0f} s.",
                        reason,
                    )
            time.sleep(0.02)

    def names(self, apart_from: str) -> set[str]:
        """Host names of every site but that app's, on disk; none where it does not load."""
        dump = self.run('nginx -T ${CONF:+-c "$CONF"} 2>/dev/null', {"CONF": self.main()}).text
        files = dump.split("# configuration file ")
        ours = f"{self.path(apart_from)}:"
        return set().union(*(_server_names(file) for file in files if not file.startswith(ours)))

    def hup(self) -> str:
        """Nginx was told to read its configuration.

        From inside: what the engine sends, whatever signal, it takes for a stop by hand, and
        starts a container `unless-stopped` never again.

        Returns:
            The container's own clock before that, as it is in nginx's log.

        Raises:
            EngineHiccup: in the words of the container's shell.
        """
        code, said = self.run(HUP, {})
        if code != 0:  # the container's own user is not the master's
            code, said = self.run(HUP, {}, "0")
        clock, _, said = said.partition("\n")
        if code != 0:
            raise EngineHiccup(
                f"nginx in {self.proxy.container} was not told to reload: "
                f"{said.strip()[-300:] or 'no master process was found'}."
            )
        return clock

    def complaints(self, since: float, clock: str) -> str:
        """Why nginx refuses, or what it warns of, in its log since a time; at most ten lines.

        Args:
            since: Unix, seconds.
            clock: what the container's own clock said then, as it is in the log.
        """
        log = self.engine.log_since(self.id, since)
        if not refused(log):  # many packages log errors to a file instead
            file = self.run("tail -n 20 /var/log/nginx/error.log 2>/dev/null", {}).text
            log = "\n".join([log, *(line for line in file.splitlines() if line[:19] >= clock)])
        return complaints(log)

    def used(self) -> bool:
        """Whether an app has, or had since the proxy started, a site or a lock here."""
        return self.run(USED, {"SITES": self.directory, "LOCKS": lock_file("*")}).text.strip() != ""

    def run(
        self, script: str, environment: dict[str, str], user: str = "", timeout: float = 20
    ) -> Output:
        """What a shell script in the container says; as its own user, or as that one."""
        if user not in self.own:
            command = ["sh", "-c", script]
            return self.engine.exec(self.id, command, environment=environment, user=user)
        if self._shell is not None and self._shell.waits:
            with engine_words(f"run sh in {self.id[:12]}"):
                output = self._shell.run(script, environment, timeout)
            if output is not None:
                return output
        return SHELLS.run(self.engine, self.id, script, environment, timeout)


def _beside(site: str, what: str) -> str:
    """A file beside a site; hidden, so that no `include` of a whole directory reads it."""
    directory, _, name = site.rpartition("/")
    return f"{directory}/.{name}.{what}"


def _server_names(site: str) -> set[str]:
    return {name for names in SERVER_NAME.findall(site) for name in names.split()}
