"""Nginx's error log: why it refuses a configuration, and what it warns of."""

from __future__ import annotations

import re

# From the start of a line: a visitor's request is in the log, too, with whatever is in its path.
REFUSED = re.compile(r"^(nginx:|[\d/]+ [\d:]+) \[emerg\]", re.MULTILINE)
CONFLICT = re.compile(r'conflicting server name "([^"]*)"')


def refused(log: str) -> bool:
    """Whether nginx did not take a configuration."""
    return REFUSED.search(log) is not None


def conflicting(log: str) -> set[str]:
    """Host names that a second site has, too, which nginx ignores there."""
    return set(CONFLICT.findall(log))


def complaints(log: str) -> str:
    """The lines that say why nginx refuses, or else those of its warnings; the last ten."""
    lines = [line.strip() for line in log.splitlines()]
    refusals = [line for line in lines if refused(line)]
    warnings = [line for line in lines if "[alert]" in line or conflicting(line)]
    return "\n".join((refusals or warnings)[-10:])
