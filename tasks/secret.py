"""Secrets by name, from Prefect's Secret blocks."""

from __future__ import annotations

import json
from typing import Any

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import ObjectNotFound

from tasks.bluegreen.errors import BadInput, Unavailable


def secret(name: str) -> str:
    """The text of the Secret block with that name.

    Raises:
        BadInput: there is no such block, or it is no Secret block.
        Unavailable: the Prefect server cannot be asked.
    """
    try:
        return text_of(Secret.load(name))  # type: ignore[arg-type]  # sync here, not a coroutine
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            raise BadInput(
                f"There is no Secret block named {name}: create it in the Prefect UI under "
                "Blocks, or correct the name in environment."
            ) from error
        raise
    except RuntimeError as error:  # as Prefect says of a block of an older kind
        raise BadInput(
            f"The Secret block {name} cannot be read ({type(error).__name__}): look at it in the "
            "Prefect UI under Blocks, and save it again."
        ) from error
    except httpx.HTTPError as error:
        raise Unavailable(
            f"The Prefect server does not tell what the Secret block {name} is "
            f"({type(error).__name__}): look at the server, then try again."
        ) from error


def text_of(block: Secret[Any]) -> str:
    """A text as it was saved, which the block's own `get` would read as JSON; else JSON."""
    value = block.value.get_secret_value()
    return value if isinstance(value, str) else json.dumps(value)
