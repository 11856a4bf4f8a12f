"""Brackets around a backup: held for the moment in which a capture is made, or while all of it is read where nothing else can hold it."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.model.consistency import Consistency
from safehold.model.quiet import Quieted
from safehold.model.resource import ResourceRef
from safehold.model.units import format_duration, format_rate, format_size
from safehold.ports.bracket import Bracket
from safehold.ports.source import Interval
from safehold.quiesce.guard import Terms
from safehold.vault.catalogue import Point

__all__ = ["Downtime", "Stillness", "announcement", "together"]

_USUAL_RATE = 200 * 1024 * 1024
"""Bytes per second of a disk that was never read before, for an estimate."""


@dataclass(frozen=True)
class Downtime:
    """Brackets by these terms. `moment`: only while the capture is made, as that stays by itself. `size` in bytes of what will be read,
    where that is known beforehand.
    """

    brackets: tuple[Bracket, ...]
    terms: Terms
    size: int | None = None
    moment: bool = False

    @property
    def promises(self) -> Consistency:
        """What is reached at least."""
        return max((bracket.promises for bracket in self.brackets), default=Consistency.NONE)

    @property
    def reaches(self) -> Consistency:
        """What is reached at most."""
        return max((bracket.reaches for bracket in self.brackets), default=Consistency.NONE)


@dataclass(frozen=True)
class Stillness:
    """How still a resource was held, from when to when, and by which brackets."""

    achieved: Consistency
    taken: Interval
    brackets: tuple[Quieted, ...] = ()

    @property
    def pause(self) -> float:
        """Seconds from the first wait for a bracket to the end of the last."""
        if not self.brackets:
            return 0.0
        return max(b.leaving[1] for b in self.brackets) - min(b.entering[0] for b in self.brackets)


def together(own: Consistency, vouched: Consistency) -> Consistency:
    """What a capture by itself and its brackets reach. No word of a bracket makes good that somebody wrote."""
    return own if own is Consistency.NONE else max(own, vouched)


def announcement(ref: ResourceRef, downtime: Downtime, previous: Point | None) -> str:
    """For how long others will have to wait: as long as the last time, or what a usual disk takes."""
    seconds = sum(bracket.expected for bracket in downtime.brackets)
    when, basis = "while it is read", "and what the copy takes"
    if downtime.moment:
        when, basis = "while it is cloned", "whatever its size"
    elif previous is not None:
        seconds += previous.body.finished - previous.body.started
        basis = "as the last backup"
    elif downtime.size is not None:
        seconds += downtime.size / _USUAL_RATE
        basis = f"{format_size(downtime.size)} at {format_rate(_USUAL_RATE, 1)}"
    specs = ", ".join(bracket.spec for bracket in downtime.brackets)
    return (
        f"{ref.name}: {specs} {when}, about {format_duration(seconds)} ({basis}), "
        f"{format_duration(downtime.terms.limit)} at most"
    )
