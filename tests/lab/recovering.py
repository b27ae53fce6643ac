"""A flow in the place of recover's, which only tells what it was asked for."""

from __future__ import annotations

from prefect import flow


@flow(name="recover")
def recover(app: str | None = None) -> str | None:
    """Its parameters are in Prefect's history.

    Args:
        app: Name of the app.
    """
    return app
