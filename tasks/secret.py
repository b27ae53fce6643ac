"""Secrets by name, from Prefect's Secret blocks."""

from __future__ import annotations

from prefect.blocks.system import Secret

from tasks.bluegreen.errors import BadInput


def secret(name: str) -> str:
    """The value of the Secret block with that name.

    Raises:
        BadInput: there is no such block, or it cannot be read.
    """
    try:
        return str(Secret.load(name).get())  # type: ignore[union-attr]  # sync here, not a coroutine
    except ValueError as error:
        raise BadInput(
            f"There is no Secret block named {name}: create it in the Prefect UI under "
            "Blocks, or correct the name in environment."
        ) from error
