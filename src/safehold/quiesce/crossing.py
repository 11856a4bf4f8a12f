"""Brackets that are about the same thing: the second would find what the first has made of it, and take it for somebody else's work."""

from __future__ import annotations

from collections.abc import Sequence

from safehold.model.errors import UsageError
from safehold.ports.bracket import Bracket

__all__ = ["check_apart"]


def check_apart(brackets: Sequence[Bracket]) -> None:
    """UsageError for a bracket that is given twice, and for two about one file system, by whichever of its mount points."""
    for number, bracket in enumerate(brackets):
        for earlier in brackets[:number]:
            # However it is spelled: what lets go of it is the same.
            if bracket.undo() == earlier.undo():
                raise UsageError("the bracket is given twice", on=bracket.spec, remedy="give it once")
            if bracket.stops & earlier.stops:
                raise UsageError(
                    f"this bracket is about the same file system as {earlier.spec}",
                    on=bracket.spec,
                    remedy="give one of the two",
                )
