"""What the last verification on this machine found, until another one looks again or the points that it hurts are let go of."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import msgspec

from safehold.model.remembered import keep, recall
from safehold.recovery.verify import Finding, Findings
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.names import Kind, kind_of
from safehold.vault.vault import Vault

__all__ = ["Remembered", "forget_points", "last_findings", "remember_findings"]

_MOST = 1000


class Remembered(msgspec.Struct, frozen=True):
    """When that was, by this machine's clock; the findings, of very many the first; how many more there were; and the ids of all points that
    any of them names.
    """

    time: float
    found: tuple[Finding, ...] = ()
    more: int = 0
    hurt: tuple[str, ...] = ()

    def about(self, point: Point) -> tuple[Finding, ...]:
        """What was found on that point, as far as it is remembered."""
        return tuple(one for one in self.found if point.id in _named(one))

    def names(self, point: Point) -> bool:
        """True where something was found on that point."""
        return point.id in self.hurt

    def hurts(self, point: Point, resource: str) -> bool:
        """True where what was found on that point may be of that one of its resources."""
        found = self.about(point)
        others = {name for name in point.resources if name != resource}
        return self.names(point) and (not found or any(one.on not in others for one in found))


def _named(finding: Finding) -> tuple[str, ...]:
    """The ids of the points that a finding is of: those of a member say so, and what is wrong with a point as a whole is told of its object."""
    if finding.point:
        return (finding.point,)
    return (finding.on.rsplit("/", 1)[1],) if kind_of(finding.on) is Kind.POINT else ()


def last_findings(vault: Vault) -> Remembered | None:
    """None where the last verification found nothing, or there was none."""
    past = recall(vault.places.findings, Remembered, Remembered(0.0))
    return past if past.found or past.more else None


def remember_findings(vault: Vault, findings: Findings) -> None:
    """Have `status` know what was found, or that nothing was. A machine that cannot remember goes on without."""
    found = findings.found
    hurt = tuple(dict.fromkeys(name for one in found for name in _named(one)))
    _store(vault, Remembered(vault.ctx.clock.now(), tuple(found[:_MOST]), max(0, len(found) - _MOST), hurt))


def forget_points(vault: Vault, points: Sequence[Point | Rejected]) -> None:
    """These points were expired: what was wrong with them is nobody's concern any more."""
    past = last_findings(vault)
    if past is None:
        return
    names, ids = {point.name for point in points}, {point.id for point in points}
    left = tuple(one for one in past.found if one.on not in names and one.point not in ids)
    hurt = tuple(one for one in past.hurt if one not in ids)
    _store(vault, msgspec.structs.replace(past, found=left, hurt=hurt))


def _store(vault: Vault, past: Remembered) -> None:
    place = vault.places.findings
    with contextlib.suppress(OSError):
        if past.found or past.more:
            keep(place, msgspec.json.encode(past))
        else:
            place.unlink(missing_ok=True)
