"""What an object may be called, whatever the store."""

from __future__ import annotations

import re

__all__ = ["check_name", "check_prefix"]

_SEGMENT = r"[a-z0-9_-][a-z0-9._-]*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(r"[a-z0-9._/-]*")


def check_name(name: str) -> str:
    """The name itself; ValueError for one that could lead outside of the store or that some store could not hold."""
    if not _NAME.fullmatch(name) or len(name) > 512:
        raise ValueError(f"not an object name: {name!r}")
    return name


def check_prefix(prefix: str) -> str:
    """The prefix itself; ValueError for one that no name starts with."""
    if not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/") or prefix.startswith("/"):
        raise ValueError(f"not the start of an object name: {prefix!r}")
    return prefix
