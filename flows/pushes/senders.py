"""Who may tell of pushes: how each proves itself, and how what it says is read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound

from flows.pushes import forges, payloads, signatures
from flows.pushes.payloads import Said
from flows.pushes.shared import Shared
from flows.pushes.signatures import Delivery
from tasks.secret import text_of

SHORTEST = 16  # characters of a secret; a shorter one can be guessed
FRESH = 30.0  # seconds until a secret is looked up again
BLOCK = "nonstop-webhook-"  # names of Secret blocks begin so
SECRETS = "NONSTOP_WEBHOOK_SECRETS"  # names the folder with files of secrets


@dataclass(frozen=True)
class Sender:
    """A kind of sender."""

    name: str
    title: str
    proven: Callable[[str, Delivery], bool]
    """Whether a delivery comes from who knows this secret."""
    read: Callable[[Delivery, Any], Said]
    proof: tuple[str, ...]
    """Where the proof is: headers, or `token` in the address."""
    repeats: str
    """What the sender does when it is refused."""


SENDERS = (
    Sender(
        "github",
        "GitHub",
        signatures.hub_signature,
        forges.github,
        ("X-Hub-Signature-256",),
        "It does not deliver again by itself: use Redeliver, or its API.",
    ),
    Sender(
        "gitlab",
        "GitLab",
        signatures.gitlab,
        forges.gitlab,
        ("X-Gitlab-Token", "webhook-id", "webhook-timestamp", "webhook-signature"),
        "It delivers again a few times only if its administrator set that up.",
    ),
    Sender(
        "dockerhub",
        "Docker Hub",
        signatures.address,
        payloads.docker_hub,
        ("token",),
        "It does not deliver again.",
    ),
    Sender(
        "harbor",
        "Harbor",
        signatures.authorization,
        payloads.harbor,
        ("Authorization",),
        "It delivers again a few times.",
    ),
    Sender(
        "distribution",
        "The open-source registry (Distribution)",
        signatures.authorization,
        payloads.distribution,
        ("Authorization",),
        "It delivers again until it is answered, in order.",
    ),
    Sender(
        "quay",
        "Quay",
        signatures.address,
        payloads.quay,
        ("token",),
        "It delivers again a few times.",
    ),
    Sender(
        "generic",
        "Anything that signs as in Standard Webhooks",
        signatures.standard,
        payloads.generic,
        ("webhook-id", "webhook-timestamp", "webhook-signature"),
        "Let it try again on 429 and 503.",
    ),
)


class Secrets:
    """The secrets of senders: lines of a file named like the sender, or of its Secret block.

    Several lines are several secrets, so that one can be changed without a gap.

    Args:
        client: of the Prefect server with the blocks.
        folder: where the files are; None: there are none.
        fresh: seconds until a secret is looked up again.
    """

    def __init__(
        self, client: PrefectClient, folder: Path | None = None, fresh: float = FRESH
    ) -> None:
        self._client, self._folder, self._fresh = client, folder, fresh
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._looks: dict[str, Shared[tuple[str, ...]]] = {}

    async def of(self, sender: str) -> tuple[str, ...]:
        """All secrets of a sender that are long enough; none: it is off.

        Raises:
            Exception: of Prefect's client, when its server does not answer.
        """
        looked, secrets = self._known.get(sender, (-self._fresh, ()))
        if time.monotonic() - looked < self._fresh:
            return secrets
        if sender not in self._looks:
            self._looks[sender] = Shared(partial(self._look, sender))
        return await self._looks[sender]()

    async def _look(self, sender: str) -> tuple[str, ...]:
        lines = (await self._text(sender)).splitlines()
        stripped = (line.strip() for line in lines)
        secrets = tuple(line for line in stripped if len(line) >= SHORTEST)
        self._known[sender] = time.monotonic(), secrets
        return secrets

    async def _text(self, sender: str) -> str:
        file = self._folder / sender if self._folder else None
        if file and file.is_file():
            return file.read_text(encoding="utf-8")
        try:
            block: Secret[Any] = await Secret.aload(f"{BLOCK}{sender}", client=self._client)
        except ValueError as error:
            if isinstance(error.__cause__, ObjectNotFound):
                return ""
            raise
        return text_of(block)
