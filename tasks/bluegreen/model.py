"""What was seen and what is decided: frozen values."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

from pydantic import Field

from tasks.bluegreen.app import App
from tasks.bluegreen.errors import Outcome
from tasks.bluegreen.units import Frozen

PREVIEW = "# a preview for whoever has the token"  # in generation.conf.j2
ANSWER = re.compile(r'return 200 "\S+ (\d+) ([0-9a-f]{16})\\n"')  # in generation.conf.j2


class Replica(Frozen):
    """One container of a release, as the engine shows it."""

    name: str
    id: str
    app: str
    number: int
    index: int = Field(description="1 for the first replica of its release.")
    address: str = Field(description="IPv4 address on the proxy's network; kept while stopped.")
    status: str = Field(description="created, running, restarting, exited, ... as Docker says.")
    health: str = Field(default="", description="Docker's own health check; empty: none.")
    created: str = Field(default="", description="Time it was made, as Docker writes it.")
    started: str = Field(default="", description="Time of its last start.")
    run: str = Field(default="", description="Id of the flow run that made it.")
    restarts: int = 0
    exit_code: int = 0
    out_of_memory: bool = False
    image_id: str = ""

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.status == "running"


STANDING = ("created", "exited", "dead")  # states of a container that a start can help


class Release(Frozen):
    """One image + environment + settings of an app, deployed once."""

    number: int
    origin: int = Field(
        description="The release whose environment it has; its own, or the one "
        "that a rollback returned to."
    )
    image: str = Field(description="The image as it was asked for, with its tag.")
    pinned: str = Field(description="The image by digest or id; what really runs.")
    pulled: bool | None = Field(default=None, description="By nonstop; None: it was not noted.")
    settings: App
    replicas: tuple[Replica, ...]

    @property
    def running(self) -> int:
        """Number of replicas whose process runs."""
        return sum(replica.running for replica in self.replicas)

    @property
    def whole(self) -> bool:
        """Whether every replica that it was deployed with runs."""
        return self.complete and self.running == len(self.replicas)

    @property
    def standing(self) -> bool:
        """Whether each of its replicas has ended for good; not one that restarts."""
        return all(replica.status in (*STANDING, "removing") for replica in self.replicas)

    @property
    def servers(self) -> frozenset[str]:
        """`address:port` of every replica, as nginx names it."""
        return frozenset(f"{r.address}:{self.settings.port}" for r in self.replicas)

    @property
    def made(self) -> float:
        """Time at which its first replica was made (Unix, seconds)."""
        return min(datetime.fromisoformat(replica.created).timestamp() for replica in self.replicas)

    @property
    def complete(self) -> bool:
        """Whether every replica that it was deployed with still exists."""
        return len(self.replicas) >= self.settings.replicas


class Live(Frozen):
    """What the running nginx says that it serves."""

    number: int
    generation: str = Field(description="Digest of the loaded site's text.")

    @staticmethod
    def named_in(site: str | None) -> Live | None:
        """What nginx would say if it had loaded this site; None: the text is not one of ours."""
        said = ANSWER.search(site or "")
        return Live(number=int(said[1]), generation=said[2]) if said else None


class Observed(Frozen):
    """What Docker and nginx showed at one moment."""

    app: str
    proxy: str = Field(default="", description="Name of the proxy's container.")
    releases: tuple[Release, ...] = Field(description="Ascending by number.")
    live: Live | None = Field(
        default=None, description="None: the running nginx has no site of this app."
    )
    site: str | None = Field(default=None, description="The site's text on disk.")
    before: str | None = Field(default=None, description="What the site's file was before.")
    holder: str = Field(default="", description="Who changes the app now; empty: nobody.")
    left: tuple[str, ...] = Field(
        default=(),
        description="Who had the lock since a run ended well, and did not; gone when the proxy "
        "restarts.",
    )
    others: tuple[int, ...] = Field(
        default=(), description="Releases that other proxies of the app serve."
    )
    gone: tuple[str, ...] = Field(
        default=(), description="Proxies of the app that no container is named like any more."
    )
    nginx: tuple[int, ...] = Field(default=(), description="Version of the proxy's nginx.")
    taken: tuple[str, ...] = Field(
        default=(), description="Addresses that containers of any app have, also stopped ones."
    )
    strangers: tuple[str, ...] = Field(
        default=(), description="Names like ours of containers that are not ours."
    )
    proxy_since: str = Field(
        default="", description="Time the proxy's container was made; empty: there is none."
    )
    networks: tuple[str, ...] | None = Field(
        default=None, description="Those that the proxy is on; None: it is on the host's."
    )
    subnet: str = ""
    dynamic: str = Field(default="", description="Part of the subnet that Docker gives away.")

    @property
    def loaded(self) -> bool:
        """Whether the site's file is what the running nginx has loaded."""
        if self.live is None or self.site is None:
            return self.live is None and self.site is None
        return self.live == Live.named_in(self.site)

    def died(self, release: Release) -> bool:
        """Whether the run that made it is known not to have ended well."""
        return any(r.run and r.run in one for r in release.replicas for one in self.left)

    @property
    def previewing(self) -> bool:
        """Whether a header still leads to the green of a run that waited for approval."""
        return PREVIEW in (self.site or "")

    @property
    def loaded_site(self) -> str | None:
        """The text that the running nginx has loaded, where it is still on disk."""
        texts = [text for text in (self.site, self.before) if PREVIEW not in (text or "")]
        return next((t for t in texts if self.live and self.live == Live.named_in(t)), None)

    @property
    def behind(self) -> tuple[Release, ...]:
        """The releases behind this proxy; others may serve behind another, and are left alone.

        Up to the live one also those whose own proxy is gone: it was renamed, or given up.
        """
        live = self.live.number if self.live else 0
        return tuple(
            r
            for r in self.releases
            if self.proxy in ("", r.settings.proxy.container)
            or (r.number <= live and r.settings.proxy.container in self.gone)
        )

    @property
    def elsewhere(self) -> tuple[Release, ...]:
        """The releases that run behind another proxy."""
        return tuple(
            r
            for r in self.releases
            if r.running and r.settings.proxy.container not in (self.proxy, *self.gone)
        )

    def settings(self, release: Release) -> App:
        """What the release was deployed with, behind this proxy where its own is gone."""
        app = release.settings
        if app.proxy.container not in self.gone:
            return app
        proxy = app.proxy.model_copy(update={"container": self.proxy})
        return app.model_copy(update={"proxy": proxy})

    def release(self, number: int) -> Release | None:
        """The release with that number, if any container of it exists."""
        return next((release for release in self.releases if release.number == number), None)


class Plan(Frozen):
    """What one deploy or rollback is about to do."""

    app: App
    green: int
    blue: int | None = Field(description="Live when the run starts; None: a first deploy.")
    blue_generation: str | None = None
    origin: int = Field(description="The release whose environment green gets.")
    source: int | None = Field(
        default=None, description="A rollback's: the release whose image and environment return."
    )
    pinned: str | None = Field(default=None, description="A rollback's image.")
    addresses: tuple[str, ...] = Field(description="One per replica.")
    nginx: tuple[int, ...] = Field(default=(), description="Version of the proxy's nginx.")
    run: str = Field(default="", description="Id of the flow run that makes green.")
    holder: str = Field(default="", description="The run, as the holder of the app's lock.")
    previous_site: str | None = Field(
        description="The text that blue's generation was loaded from; None: the file is another."
    )


class Recovery(Frozen):
    """What a dead run left, and what is done about it."""

    app: str
    live: int | None = Field(description="The release that serves, or is going to.")
    site: Literal["is loaded", "put back", "load", "restore", "remove"] = Field(
        default="is loaded", description="What becomes of the site's file."
    )
    connect: str = Field(
        default="", description="Network of what serves, when the proxy is not on it."
    )
    start: tuple[str, ...] = Field(
        default=(), description="Ids of the live release's replicas that stand still."
    )
    remove: tuple[int, ...] = Field(default=(), description="Greens that never became live.")
    finish: bool = Field(
        default=False, description="Whether `live` is verified and what came before it retired."
    )
    blue: int | None = Field(
        default=None, description="The release to go back to when `live` is not good."
    )

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        half_done = self.site != "is loaded" or self.start or self.remove or self.finish
        return bool(half_done or self.connect)


class Retirement(Frozen):
    """What teardown-blue does to which release."""

    stop: tuple[int, ...]
    keep: tuple[int, ...]
    remove: tuple[int, ...]


class Preview(Frozen):
    """Who may meet green before the cutover."""

    number: int = Field(description="Green's.")
    servers: tuple[str, ...] = Field(description="`address:port` of each of green's replicas.")
    token: str = Field(description="Value of the header that leads to green.")


class Site(Frozen):
    """One app's piece of nginx configuration."""

    app: str
    number: int
    generation: str
    text: str
    previews: bool = Field(default=False, description="Whether a header leads to green.")


class Verified(Frozen):
    """What verify-traffic saw."""

    requests: int = Field(description="Requests of ours through the front door.")
    failed: int
    visitors: int = Field(description="Visitors' requests that green's replicas answered.")
    visitors_failed: int
    deaf: str = Field(default="", description="Why not all visitors' requests are among them.")


class Drained(Frozen):
    """How blue's last requests ended."""

    seconds: float
    left: int = Field(description="Connections to blue that the limit cut; 0: none was lost.")


class Step(Frozen):
    """One step of a run."""

    name: str
    seconds: float


class Report(Frozen):
    """How a run ended."""

    outcome: Outcome
    app: str
    release: int | None = None
    image: str = ""
    blue: int | None = None
    steps: tuple[Step, ...] = ()
    verified: Verified | None = None
    drained: Drained | None = None
    cleanup: Literal["done", "pending"] = "done"
    changed: bool = Field(
        default=True, description="Whether anything was done; not, when it served already."
    )
    changes: tuple[str, ...] = Field(default=(), description="What it changed, or tried to.")
    notes: tuple[str, ...] = Field(default=(), description="What else was decided, and by whom.")
    message: str = Field(description="What happened and who serves now, in a sentence or two.")
    evidence: str = Field(default="", description="Lines that show why it failed.")
