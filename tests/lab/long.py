"""One of several cases of a rule, which `make test-all` runs; `make test` has another of them."""

from __future__ import annotations

import functools

import pytest

LONG = functools.partial(pytest.param, marks=pytest.mark.long)
