"""What must never be made quiet: whatever the backup itself has to write to meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safehold.model.errors import UsageError
from safehold.ports.bracket import Bracket

__all__ = ["Needed", "check_allowed"]


@dataclass(frozen=True)
class Needed:
    """A place that has to be writable: in words, its path, and the numbers of every file system and device that lies below it."""

    what: str
    path: str
    below: frozenset[str]


def check_allowed(brackets: Iterable[Bracket], needed: Sequence[Needed]) -> None:
    """UsageError for a bracket that stops one of the places: the backup would wait for itself, and a machine without swap for ever."""
    for bracket in brackets:
        for place in needed:
            if bracket.stops & place.below:
                raise UsageError(
                    f"{place.what} ({place.path}) lies on what this would stop",
                    on=bracket.spec,
                    remedy="keep that elsewhere, or protect this file system without the bracket",
                )
