"""The Prefect server, asked from within a run: no deploy depends on its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import SettingsContext, get_settings_context
from prefect.exceptions import PrefectHTTPStatusError

BRIEF = 10.0  # seconds
BUSY = (0.1, 0.3, 1.0)  # seconds before a further try

T = TypeVar("T")


@contextmanager
def briefly() -> Iterator[SyncPrefectClient]:
    """Within, a server that is away is not waited for: no deploy depends on what is asked.

    The client is the run's own, and what Prefect's functions use within. Prefect's
    `temporary_settings` would read all of its files and variables again, for 50 ms a time.
    """
    here = get_settings_context()
    once = here.settings.client.model_copy(update={"max_retries": 0})
    settings = here.settings.model_copy(update={"client": once})
    with (
        SettingsContext(profile=here.profile, settings=settings),
        get_client(sync_client=True) as client,
    ):
        patience, client._client.timeout = client._client.timeout, httpx.Timeout(BRIEF)
        try:
            yield client
        finally:
            client._client.timeout = patience


def once_free(write: Callable[[], T]) -> T:
    """What the server answers when it is not too busy: SQLite says at once that it is locked.

    Raises:
        Exception: of Prefect's client, also when the server says for seconds that it is busy.
    """
    for pause in BUSY:
        try:
            return write()
        except PrefectHTTPStatusError as error:
            if error.response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise
        time.sleep(pause)
    return write()
