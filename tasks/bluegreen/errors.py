"""Every failure, and who serves after it.

NonstopError
├── Refused            nothing was touched
│   ├── BadInput           the App, its template or its files are wrong
│   ├── Unavailable        the engine or the proxy cannot be used as it is
│   ├── ImageUnavailable   no such image, or its registry refuses
│   │   └── RegistryAway       the registry did not answer; a second try may help
│   ├── NothingKept        no release to roll back to
│   ├── Locked             another run is changing this app
│   ├── OutsideWindow      the app may not be deployed at this time
│   ├── Postponed          a run waits for the app's next release window
│   └── Superseded         a newer push of the app asked for a run
├── Failed             a step failed; the release before it serves
│   ├── EngineHiccup       the engine did not do what it should; a second try may help
│   ├── ReplicaCrashed     a container of green ended, or never started
│   ├── Unhealthy          green did not become healthy in time
│   ├── SiteRejected       nginx does not take the new site
│   ├── NotApproved        somebody refused green, or nobody answered
│   ├── LockLost           the run no longer holds the app's lock, so it must not switch
│   ├── CutoverUnproven    nginx was reloaded and does not serve green
│   └── BadTraffic         green serves, and does so badly
└── StateUnknown       a person has to look
"""

from __future__ import annotations

from typing import Literal

Outcome = Literal["succeeded", "refused", "failed", "unknown"]
EXIT_CODES: dict[Outcome, int] = {"succeeded": 0, "failed": 1, "refused": 2, "unknown": 3}


class NonstopError(Exception):
    """What happened, to what; who serves now; the evidence or what to do next.

    Args:
        what: one sentence: what happened, where, and what to do about it.
        evidence: lines that show it (a log, nginx's own words), secrets masked.

    `serves` is a sentence about who serves now, added when a run has ended.
    """

    outcome: Outcome = "failed"
    may_pass = False  # whether trying the same again can help

    def __init__(self, what: str, evidence: str = "") -> None:
        super().__init__(what, evidence)
        self.what = what
        self.evidence = evidence
        self.serves = ""

    def __str__(self) -> str:
        """The sentence, who serves, and the evidence below it."""
        sentence = " ".join(part for part in (self.what, self.serves) if part)
        return f"{sentence}\n{self.evidence}" if self.evidence else sentence


class Refused(NonstopError):
    """Nothing was touched."""

    outcome = "refused"


class BadInput(Refused):
    """The App, its template or its files are wrong."""


class Unavailable(Refused):
    """The engine or the proxy cannot be used as it is."""


class ImageUnavailable(Refused):
    """No such image, or its registry refuses."""


class RegistryAway(ImageUnavailable):
    """The registry did not answer; a second try may help."""

    may_pass = True


class NothingKept(Refused):
    """No release to roll back to."""


class Locked(Refused):
    """Another run is changing this app."""


class OutsideWindow(Refused):
    """The app may not be deployed at this time."""


class Postponed(Refused):
    """A run waits for the app's next release window."""


class Superseded(Refused):
    """A newer push of the app asked for a run."""


class Failed(NonstopError):
    """A step failed; the release before it serves."""


class EngineHiccup(Failed):
    """The engine did not do what it should; a second try may help."""

    may_pass = True


class ReplicaCrashed(Failed):
    """A container of green ended, or never started."""


class Unhealthy(Failed):
    """Green did not become healthy in time."""


class SiteRejected(Failed):
    """Nginx does not take the new site."""


class NotApproved(Failed):
    """Somebody refused green, or nobody answered."""


class LockLost(Failed):
    """The run no longer holds the app's lock, so it must not switch."""


class CutoverUnproven(Failed):
    """Nginx was reloaded and does not serve green."""


class BadTraffic(Failed):
    """Green serves, and does so badly."""


class StateUnknown(NonstopError):
    """A person has to look."""

    outcome = "unknown"
