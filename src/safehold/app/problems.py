"""What somebody should look at: of a vault, of a resource in it, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape

from safehold.app.findings import Remembered, last_findings
from safehold.app.keys import LateWriter, late_writers
from safehold.app.status import Standing, damaged_packs
from safehold.model.errors import DamageError, FailedError, PartialError
from safehold.model.units import format_count, format_time
from safehold.recovery.verify import Finding
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.names import Kind, kind_of
from safehold.vault.vault import Vault
from safehold.vault.writers import allows

__all__ = ["Problem", "of_resources", "vault_problems"]

_RUNBOOK = 'see the runbook, "Damaged vault"'
_AGAIN = f"{_RUNBOOK}; once it is mended, verify again: safehold verify"
"""What the last verification found is known until the next one looks again."""

_NAMED = 3


@dataclass(frozen=True)
class Problem:
    """`remedy` may be empty. `resources` are shell patterns of what it may be of, `code` is the exit code that it stands for, and `vault` the
    address of the vault where that is another than the one that is looked at.
    """

    what: str
    remedy: str = ""
    resources: tuple[str, ...] = ("*",)
    code: int = FailedError.exit_code
    vault: str = ""

    def __str__(self) -> str:
        where = f"vault {self.vault}: " if self.vault else ""
        return f"{where}{self.what}" + (f" → {self.remedy}" if self.remedy else "")

    def concerns(self, resource: str) -> bool:
        """True where it may be a problem of that resource."""
        return allows(self.resources, resource)


def of_resources(*names: str) -> tuple[str, ...]:
    """Patterns that fit these names and nothing else."""
    return tuple(escape(name) for name in dict.fromkeys(names))


def vault_problems(
    vault: Vault, points: Sequence[Point], rejected: Sequence[Rejected], found: Sequence[Standing], resource: str | None
) -> list[Problem]:
    """What is known to be wrong with a vault, the worst first: all of it, or what may be of one resource. `points` and `rejected` are what
    `read_points` gives, `found` is what `standings` makes of it.
    """
    problems = [
        Problem(
            one.told,
            one.remedy,
            of_resources(*one.resources) if one.resources else one.allowed,
            DamageError.exit_code,
        )
        for one in rejected
        if not one.void
    ]
    problems += [Problem(str(one), one.remedy, code=one.exit_code) for one in vault.problems]
    problems += _packs(damaged_packs(vault))
    problems += _found(last_findings(vault), points, rejected, resource)
    problems += [_late(one) for one in late_writers(vault, rejected)]
    problems += [_partial(one, one.point) for one in found if one.point and one.partial]
    return [one for one in problems if resource is None or one.concerns(resource)]


def _packs(packs: Sequence[str]) -> list[Problem]:
    if not packs:
        return []
    names = ", ".join(packs[:_NAMED]) + (f" and {len(packs) - _NAMED} more" if len(packs) > _NAMED else "")
    return [Problem(f"damaged data was found, and is not repaired: {names}", _RUNBOOK, code=DamageError.exit_code)]


def _found(
    past: Remembered | None, points: Sequence[Point], rejected: Sequence[Rejected], resource: str | None
) -> list[Problem]:
    if past is None:
        return []
    concerns = _concerns(past, points, rejected)
    told = [one for one in past.found if resource is None or concerns(one, resource)]
    unnamed = resource is None or any(past.names(p) and not past.about(p) for p in points if resource in p.resources)
    more = len(told[1:]) + (past.more if unnamed else 0)
    if not told and not more:
        return []
    first = "".join(_told(one) for one in told[:1]) + f" (and {more} more)" * bool(more)
    patterns = of_resources(resource) if resource is not None else ("*",)
    return [Problem(f"verify found on {format_time(past.time)}: {first}", _AGAIN, patterns, DamageError.exit_code)]


def _told(finding: Finding) -> str:
    return f"{finding.what} ({finding.on}{f'@{finding.point[:8]}' if finding.point else ''})"


def _concerns(
    past: Remembered, points: Sequence[Point], rejected: Sequence[Rejected]
) -> Callable[[Finding, str], bool]:
    """Whether a finding may be of a resource: what cannot be told may be of any."""
    by_id = {point.id: point for point in points}
    by_name: dict[str, Point | Rejected] = {point.name: point for point in points}
    by_name |= {one.name: one for one in rejected}

    def concerns(finding: Finding, resource: str) -> bool:
        point = by_id.get(finding.point) or by_name.get(finding.on)
        if isinstance(point, Rejected):
            return point.may_be_of(resource)
        if point is None:
            # Of a point that is no longer there, or of the vault as a whole.
            return not finding.point and kind_of(finding.on) is not Kind.POINT
        return resource in point.resources and past.hurts(point, resource)

    return concerns


def _late(one: LateWriter) -> Problem:
    ids = " ".join(f"@{name[:8]}" for name in one.points[:_NAMED])
    rest = f" and {len(one.points) - _NAMED} more, which `safehold points` names" if len(one.points) > _NAMED else ""
    return Problem(
        f"writer {one.id[:8]} ({one.label or 'no label'}) was revoked on {format_time(one.revoked)} and goes on adding: "
        f"{format_count(len(one.points), 'point')} that do{'es' * (len(one.points) == 1)} not count, the last on {format_time(one.last)}",
        f"take the credential off that host, and its access to the store away; then: safehold point expire {ids}{rest}",
        one.resources,
    )


def _partial(one: Standing, point: Point) -> Problem:
    return Problem(
        f"the newest point of {one.resource} is partial: {format_count(len(one.partial), 'problem')}, first: {one.partial[0]}",
        f"safehold point show {one.resource}@{point.id[:8]}",
        of_resources(one.resource),
        PartialError.exit_code,
    )
