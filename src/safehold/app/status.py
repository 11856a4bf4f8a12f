"""How each resource stands."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.app.sharing import warn_of_shared_names
from safehold.model.context import Context
from safehold.vault.catalogue import Point
from safehold.vault.notes import Facts
from safehold.vault.vault import Vault

__all__ = ["Standing", "standings"]

_ORDER = ("OVERDUE", "partial", "ok")


@dataclass(frozen=True)
class Standing:
    """A resource's newest point, its age in seconds, and when the data of any of its points was last proved (0: never)."""

    resource: str
    point: Point
    age: float
    size: int
    points: int
    consistency: str
    verified: float
    partial: tuple[str, ...]
    overdue: bool

    @property
    def state(self) -> str:
        """In one word; the worst where several would do."""
        return "OVERDUE" if self.overdue else "partial" if self.partial else "ok"


def standings(vault: Vault, ctx: Context, max_age: float | None) -> list[Standing]:
    """Every resource, what needs attention first. Objects that are no points are warned of, and names that several hosts use."""
    points, rejected = vault.points()
    for one in rejected:
        ctx.progress.warn(f"not a valid point: {one.name}: {one.reason}")
    warn_of_shared_names(points, ctx)
    facts = vault.notes().facts()
    now = ctx.clock.now()
    newest = {member.name: (point, member) for point in points for member in point.body.members}
    found = []
    for name, (point, member) in newest.items():
        mine = [p for p in points if name in p.resources]
        age = max(0.0, now - point.time)
        found.append(
            Standing(
                name,
                point,
                age,
                member.size,
                len(mine),
                member.achieved,
                max(facts.get(p.subject, Facts()).data for p in mine),
                member.partial,
                max_age is not None and age > max_age,
            )
        )
    return sorted(found, key=lambda one: (_ORDER.index(one.state), one.resource))
