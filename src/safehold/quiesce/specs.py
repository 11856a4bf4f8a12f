"""Brackets as a user writes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from safehold.model.errors import UsageError

__all__ = ["BracketKind", "BracketSpec", "parse_bracket"]


class BracketKind(enum.Enum):
    """What there is before the colon."""

    FSFREEZE = "fsfreeze"
    GUEST_AGENT = "guest-agent"
    UNMOUNT = "unmount"
    READONLY = "readonly"
    HOOK = "hook"


@dataclass(frozen=True, slots=True)
class BracketSpec:
    """A kind, and the directory, socket or command that it is about."""

    kind: BracketKind
    argument: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.argument}"


def parse_bracket(text: str) -> BracketSpec:
    """`KIND:ARGUMENT`, like `fsfreeze:/srv/data` or `hook:./quiesce.sh`. UsageError."""
    word, _, argument = text.partition(":")
    try:
        kind = BracketKind(word)
    except ValueError:
        raise UsageError(
            "no such kind of bracket",
            on=text,
            remedy="write one of " + ", ".join(f"{k.value}:…" for k in BracketKind),
        ) from None
    if not argument:
        raise UsageError("a bracket of what?", on=text, remedy=f"write {word}:PATH")
    return BracketSpec(kind, argument)
