"""How a sender proves itself. Every comparison takes the same time whatever it compares."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

SIGNING = "whsec_"  # what signing tokens of Standard Webhooks, and so of GitLab, begin with
TOLERANCE = 300.0  # seconds that a signed delivery may be old, or ahead by another clock


@dataclass(frozen=True)
class Delivery:
    """A request as it came."""

    headers: Mapping[str, str]
    """By names in small letters."""
    body: bytes
    token: str
    """Of the address, from a sender that can neither sign nor send a header."""
    received: float
    """Seconds since 1970."""

    def header(self, name: str) -> str:
        """A header's text; empty without it."""
        return self.headers.get(name, "")

    @property
    def digest(self) -> str:
        """Of the body, by which the same one is known again."""
        return hashlib.sha256(self.body).hexdigest()


def hub_signature(secret: str, delivery: Delivery) -> bool:
    """X-Hub-Signature-256 is the body's HMAC, as GitHub makes it."""
    made = hmac.new(secret.encode(), delivery.body, hashlib.sha256).hexdigest()
    return _equal(f"sha256={made}", _bytes(delivery, "x-hub-signature-256"))


def gitlab(secret: str, delivery: Delivery) -> bool:
    """The webhook's signing token has signed it, or X-Gitlab-Token is the secret token.

    A secret that is a signing token is never accepted as a header.
    """
    if secret.startswith(SIGNING):
        return standard(secret, delivery)
    return _equal(secret, _bytes(delivery, "x-gitlab-token"))


def authorization(secret: str, delivery: Delivery) -> bool:
    """The Authorization header is the secret, alone or as a bearer's."""
    said = _bytes(delivery, "authorization")
    alone, bearer = _equal(secret, said), _equal(f"Bearer {secret}", said)
    return alone or bearer


def address(secret: str, delivery: Delivery) -> bool:
    """The address that was called has the secret as `token`."""
    return _equal(secret, delivery.token.encode("utf-8", "replace"))


def standard(secret: str, delivery: Delivery) -> bool:
    """Signed as in Standard Webhooks: id, time and body together, and not long ago."""
    moment = delivery.header("webhook-timestamp")
    name = _bytes(delivery, "webhook-id")
    if not (name and moment.isascii() and moment.isdigit() and len(moment) < 12):
        return False
    signed = b".".join((name, moment.encode(), delivery.body))
    made = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    wanted = f"v1,{base64.b64encode(made).decode()}"
    given = _bytes(delivery, "webhook-signature").split(b" ")
    right = any(_equal(wanted, one) for one in given)
    return right and abs(delivery.received - int(moment)) <= TOLERANCE


def _key(secret: str) -> bytes:
    if secret.startswith(SIGNING):
        try:
            return base64.b64decode(secret.removeprefix(SIGNING), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def _bytes(delivery: Delivery, header: str) -> bytes:
    return delivery.header(header).encode("latin-1", "replace")  # as they came


def _equal(wanted: str, given: bytes) -> bool:
    return hmac.compare_digest(wanted.encode(), given)
