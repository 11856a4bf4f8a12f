"""How each resource stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safehold.app.sharing import warn_of_shared_names
from safehold.model.context import Context
from safehold.model.errors import ObjectNotFound, StoreError
from safehold.vault.catalogue import Point
from safehold.vault.notes import Facts
from safehold.vault.vault import Vault

__all__ = ["Standing", "damaged_packs", "standings"]

_ORDER = ("missing", "OVERDUE", "failed", "partial", "ok")


@dataclass(frozen=True)
class Standing:
    """A resource's newest point (None: there is none, though one is asked for), its age in seconds by the store's clock, and when the data of
    any of its points was last proved (0: never). `failure` is what made its last unattended backup fail.
    """

    resource: str
    point: Point | None
    age: float
    size: int
    points: int
    consistency: str
    verified: float
    partial: tuple[str, ...]
    overdue: bool
    failure: str

    @property
    def state(self) -> str:
        """In one word; the worst where several would do."""
        if self.point is None:
            return "missing"
        return "OVERDUE" if self.overdue else "failed" if self.failure else "partial" if self.partial else "ok"


def standings(
    vault: Vault, points: Sequence[Point], ctx: Context, max_age: float | None, expected: Mapping[str, str]
) -> list[Standing]:
    """Every resource of these points, all that there are, what needs attention first. Names that several hosts use are warned of.

    `expected` are resources that there should be points of, each with what made its last backup fail (empty: nothing).
    """
    warn_of_shared_names(points, ctx)
    facts = vault.notes().facts()
    now = _now(vault, points, ctx) if points else 0.0
    newest = {member.name: (point, member) for point in points for member in point.body.members}
    found = [
        Standing(name, None, 0.0, 0, 0, "", 0.0, (), max_age is not None, failure)
        for name, failure in expected.items()
        if name not in newest
    ]
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
                expected.get(name, ""),
            )
        )
    return sorted(found, key=lambda one: (_ORDER.index(one.state), one.resource))


def _now(vault: Vault, points: Sequence[Point], ctx: Context) -> float:
    """By the store's clock, as the times of points are: this machine's may be years behind, and would call old points young."""
    try:
        return vault.store_time()
    except StoreError as error:
        # Who may only read, or finds the store full, is better served with an estimate than with nothing.
        ctx.progress.note(f"the store's time cannot be asked ({error}): ages are by this machine's clock")
        return max(ctx.clock.now(), points[-1].time)


def damaged_packs(vault: Vault) -> list[str]:
    """Packs that were found damaged, have not been right since, and are still there."""
    there = []
    for name in vault.chain.record.damaged if vault.chain.record else ():
        try:
            vault.store.head(name)
        except ObjectNotFound:
            continue
        there.append(name)
    return there
