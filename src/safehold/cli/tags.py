"""Tags as they are written on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from safehold.model.errors import UsageError

__all__ = ["parse_tags"]


def parse_tags(pairs: Sequence[str]) -> dict[str, str]:
    """`K=V` pairs. UsageError."""
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError("not a tag", on=pair, remedy="write KEY=VALUE")
        tags[key] = value
    return tags
