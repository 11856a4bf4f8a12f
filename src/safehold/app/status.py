"""How each resource stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safehold.app.findings import last_findings
from safehold.app.sharing import warn_of_shared_names
from safehold.model.context import Context
from safehold.model.errors import ObjectNotFound, StoreError
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.notes import Facts
from safehold.vault.vault import Vault

__all__ = ["Proof", "Standing", "damaged_packs", "standings"]

_ORDER = ("missing", "OVERDUE", "damaged", "failed", "partial", "ok")


@dataclass(frozen=True)
class Proof:
    """That all of a point's data was read and found right: its id, whether it is its resource's newest, when that was by the store's clock, and
    how many seconds ago.
    """

    point: str
    newest: bool
    time: float
    age: float


@dataclass(frozen=True)
class Standing:
    """A resource's newest point (None: there is none, though one is asked for), its age in seconds by the store's clock, and the newest point
    whose data was proved. `failure` is what made its last unattended backup fail; `damaged` are the points of it that are known to be hurt.
    """

    resource: str
    point: Point | None = None
    age: float = 0.0
    size: int = 0
    points: int = 0
    consistency: str = ""
    proof: Proof | None = None
    partial: tuple[str, ...] = ()
    overdue: bool = False
    failure: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """In one word; the worst where several would do."""
        if self.point is None:
            return "missing"
        if self.overdue:
            return "OVERDUE"
        return "damaged" if self.damaged else "failed" if self.failure else "partial" if self.partial else "ok"


def standings(
    vault: Vault,
    points: Sequence[Point],
    rejected: Sequence[Rejected],
    ctx: Context,
    max_age: float | None,
    expected: Mapping[str, str],
) -> list[Standing]:
    """Every resource of these points, all that there are, what needs attention first. Names that several hosts use are warned of.

    `rejected` is what claims to be a point and is none. `expected` are resources that there should be points of, each with what made its last
    backup fail (empty: nothing).
    """
    warn_of_shared_names(points, ctx)
    facts = vault.notes().facts()
    now = _now(vault, points, ctx) if points else 0.0
    past = last_findings(vault)
    newest = {member.name: (point, member) for point in points for member in point.body.members}
    found = [
        Standing(name, overdue=max_age is not None, failure=failure)
        for name, failure in expected.items()
        if name not in newest
    ]
    for name, (point, member) in newest.items():
        mine = [p for p in points if name in p.resources]
        hurt = [p.id for p in mine if past and past.hurts(p, name)]
        hurt += [one.id for one in rejected if one.hurts and name in one.resources]
        proved = [p for p in mine if p.id not in hurt and facts.get(p.subject, Facts()).data]
        age = max(0.0, now - point.time)
        found.append(
            Standing(
                name,
                point,
                age,
                member.size,
                len(mine),
                member.achieved,
                _proof(proved[-1], facts[proved[-1].subject].data, now, newest=proved[-1] is point) if proved else None,
                member.partial,
                max_age is not None and age > max_age,
                expected.get(name, ""),
                tuple(dict.fromkeys(hurt)),
            )
        )
    return sorted(found, key=lambda one: (_ORDER.index(one.state), one.resource))


def _proof(point: Point, time: float, now: float, *, newest: bool) -> Proof:
    return Proof(point.id, newest, time, max(0.0, now - time))


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
