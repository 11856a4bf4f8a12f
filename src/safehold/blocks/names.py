"""What volumes can be called, and what lies beside them in the directory of all."""

from __future__ import annotations

import re

from safehold.model.errors import UsageError

__all__ = ["DELETED", "LOCK", "check_name"]

DELETED, LOCK = "deleted", "lock"
"""The recycle bin, and what the process that has the volumes holds."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(name: str) -> None:
    """UsageError where a volume cannot be called that."""
    if name in (DELETED, LOCK):
        raise UsageError(
            "a volume cannot be called that: what keeps the volumes is", on=name, remedy="choose another name"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            "a volume cannot be called that",
            on=name,
            remedy="use up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
        )
