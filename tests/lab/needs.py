"""What a test needs and this machine lacks."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def cannot_run(why: str) -> NoReturn:
    """The test is skipped, with the reason; in CI, where every test has to run, it fails."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
