"""Holding, tagging and expiring points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from fnmatch import fnmatchcase

from safehold.app.findings import forget_points
from safehold.app.points import pick, read_points, select
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.policies.retention import Candidate, Decision, KeepRules, decide
from safehold.recovery.verify import Findings, verify_structure
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.notes import Facts
from safehold.vault.vault import Vault

__all__ = [
    "ExpiryPlan",
    "apply_expiry",
    "check_left",
    "hold",
    "note_verified",
    "plan_expiry",
    "plan_single",
    "release",
    "select_any",
    "tag",
]


_DIGITS = 8

_SLACK = 60.0
"""Seconds by which points may be out of order: backups at the same time end in any, and clocks are set right."""


@dataclass(frozen=True)
class ExpiryPlan:
    """What would happen to each point, by the store's time `now`; of points whose structure had to be looked at, what is wrong, and those that
    are whole.
    """

    now: float
    decisions: list[tuple[Point, Decision]]
    damaged: Findings
    verified: list[Point]

    @property
    def expiring(self) -> list[Point]:
        """The points that nothing keeps."""
        return [point for point, decision in self.decisions if not decision.keep]


def _candidates(
    vault: Vault, points: Sequence[Point], covered: Callable[[str], bool], facts: dict[bytes, Facts]
) -> list[Candidate]:
    pinned = vault.expiry().pinned()
    out = []
    for point in points:
        known = facts.get(point.subject, Facts())
        kept = []
        if known.held:
            kept.append(f"held: {known.held}")
        if point.name.removeprefix("points/") in pinned:
            kept.append("pinned")
        if point.body.keep:
            kept.append("kept until deleted")
        if not all(covered(name) for name in point.resources):
            kept.append("belongs to others too")
        certificate = vault.certificate(point.wid)
        out.append(
            Candidate(
                point.name,
                point.resources,
                point.time,
                known.tagged(point.body.tags),
                complete=not any(member.partial for member in point.body.members),
                own=certificate is not None and not certificate.exported,
                sound=bool(known.structure or known.data),
                verified=bool(known.data),
                kept=tuple(kept),
            )
        )
    return out


def plan_expiry(
    vault: Vault,
    patterns: Sequence[str],
    rules: KeepRules,
    now: float,
    zone: tzinfo | None,
    ctx: Context,
    *,
    any_times: bool = False,
) -> ExpiryPlan:
    """Apply the rules at the store's time `now` to the resources that fit one of the shell patterns (none: all). Days are those of `zone`, or
    of this machine (None). Nothing is written. UsageError for rules that keep nothing.

    UsageError too where the times of the owner's own points contradict each other, unless `any_times` will do: in a copied vault they are those
    of the copying, and the rules would keep whichever point was copied last.

    A point that holds other resources too is in the plan, and stays: nobody said how long theirs are kept.
    Points of exported writers whose structure nobody verified yet are verified first.
    """
    if rules.empty:
        raise UsageError(
            "no rule says what to keep", remedy="give at least one --keep-… rule, or name single points: RESOURCE@ID"
        )

    def covered(name: str) -> bool:
        return not patterns or any(fnmatchcase(name, one) for one in patterns)

    points = [p for p in vault.points()[0] if any(covered(name) for name in p.resources)]
    if not any_times:
        _demand_true_times(vault, points)
    facts = vault.notes().facts()
    verified, damaged = _verify_new(vault, points, facts, ctx)
    for point in verified:
        facts.setdefault(point.subject, Facts()).structure = now
    decisions = decide(
        _candidates(vault, points, covered, facts),
        rules,
        now,
        minimum_age=vault.parameters.minimum_age,
        zone=zone,
    )
    by_name = {point.name: point for point in points}
    return ExpiryPlan(now, [(by_name[decision.point.id], decision) for decision in decisions], damaged, verified)


def _demand_true_times(vault: Vault, points: Sequence[Point]) -> None:
    """Whoever made several points made them one after the other by his own clock, however wrong that is."""
    last: dict[bytes, float] = {}
    turned = 0
    for point in sorted(points, key=lambda one: one.time):
        certificate = vault.certificate(point.wid)
        if certificate is None or certificate.exported:
            continue
        turned += point.body.finished < last.get(point.wid, 0.0) - _SLACK
        last[point.wid] = max(point.body.finished, last.get(point.wid, 0.0))
    if turned:
        raise UsageError(
            f"the store gives {turned} of {len(points)} points later times than points that were made after them: the vault was copied, or its "
            "files were touched",
            on=vault.store.url,
            remedy="let points go by their ids (safehold point expire RESOURCE@ID); or, where a clock was set back when they were made, "
            "look at --dry-run --any-times, and give that",
        )


def _verify_new(
    vault: Vault, points: Sequence[Point], facts: dict[bytes, Facts], ctx: Context
) -> tuple[list[Point], Findings]:
    """Points of exported writers that were not verified before and are whole, and what is wrong with the others."""
    foreign = {wid for wid, certificate in vault.writers.items() if certificate.exported}
    fresh = [p for p in points if p.wid in foreign and not facts.get(p.subject, Facts()).structure]
    if not fresh:
        return [], Findings()
    ctx.progress.start("verify new points", None)
    findings = verify_structure(vault, fresh, ctx)
    ctx.progress.done()
    bad = {finding.point for finding in findings.found}
    return [point for point in fresh if point.id not in bad], findings


def plan_single(vault: Vault, selectors: Sequence[str]) -> list[Point | Rejected]:
    """The points that are named one by one; `@ID` also names an object among them that is none. UsageError for one that is held or that
    something depends on.
    """
    points, rejected = vault.points()
    facts, expiry = vault.notes().facts(), vault.expiry()
    pinned = expiry.pinned()
    chosen = [_rejected(rejected, selector) or select(points, selector, rejected) for selector in selectors]
    for point in chosen:
        held = facts.get(point.subject, Facts()).held
        if held:
            named = "" if isinstance(point, Rejected) else point.resources[0]
            raise UsageError(
                f"point is held ({held})", on=point.id, remedy=f"safehold point release {named}@{point.id[:8]}"
            )
        if point.name.removeprefix("points/") in pinned:
            expiry.demand_free(point.wid, point.sid)
    return chosen


def _rejected(rejected: Sequence[Rejected], selector: str) -> Rejected | None:
    """What `@ID` names among the objects that are no points. It takes eight digits of the id: nothing else is known of what goes."""
    wanted = selector.removeprefix("@").lower()
    if not selector.startswith("@") or len(wanted) < _DIGITS:
        return None
    fitting = [one for one in rejected if one.sid and one.id.startswith(wanted)]
    return fitting[0] if len(fitting) == 1 else None


def select_any(vault: Vault, selector: str) -> Point | Rejected:
    """The point that a selector names; `@ID` also names an object among the points that is none, or is gone. UsageError where there is none."""
    points, rejected = read_points(vault)
    return _rejected(rejected, selector) or select(points, selector, rejected)


def check_left(vault: Vault, expiring: Sequence[Point]) -> None:
    """UsageError where a resource would be left without a point, or without a verified one although it has one."""
    facts = vault.notes().facts()
    going = {point.name for point in expiring}
    points = vault.points()[0]
    for resource in dict.fromkeys(name for point in expiring for name in point.resources):
        mine = [p for p in points if resource in p.resources]
        proved = [p for p in mine if facts.get(p.subject, Facts()).data]
        if going.issuperset(p.name for p in mine):
            raise UsageError(
                "this is all that is left of the resource", on=resource, remedy="to let it go all the same: --even-last"
            )
        if proved and going.issuperset(p.name for p in proved):
            raise UsageError(
                "no other point of the resource is verified",
                on=f"{resource}@{proved[-1].id[:8]}",
                remedy="verify one that stays (safehold verify POINT --data), or let it go all the same: --even-last",
            )


def note_verified(vault: Vault, plan: ExpiryPlan) -> None:
    """Note the points that the plan found whole, so that the next one need not look again."""
    notes = vault.notes()
    for point in plan.verified:
        notes.add(point.subject, "verified", {"depth": "structure"})


def apply_expiry(vault: Vault, points: Sequence[Point | Rejected], ctx: Context) -> list[Point | Rejected]:
    """Expire points; gives those that no longer count. With a recycle period they leave the store when it is over.

    What somebody holds or depends on since the plan was made is told of and stays.
    """
    expiry = vault.expiry()
    vault.mend()
    facts = vault.notes().facts()
    expired = []
    for point in points:
        ctx.cancel.check()
        if facts.get(point.subject, Facts()).held:
            ctx.progress.warn(f"point {point.id[:8]} is held since a moment ago, and stays")
            continue
        try:
            expiry.forget(point.wid, point.sid)
            if isinstance(point, Rejected) and point.gone:
                expiry.end_session(point.wid, point.sid)
        except UsageError as error:
            ctx.progress.warn(f"point {point.id[:8]} stays: {error}")
        else:
            expired.append(point)
    forget_points(vault, expired)
    expiry.collect(vault.store_time())
    return expired


def hold(vault: Vault, selector: str, reason: str) -> Point:
    """Keep a point whatever the rules say, until it is released."""
    (point,) = pick(vault, selector)
    vault.notes().add(point.subject, "hold", {"reason": reason})
    return point


def release(vault: Vault, selector: str) -> Point | Rejected:
    """End a hold; `@ID` also names an object among the points that is none, or is gone. UsageError where there is none."""
    point = select_any(vault, selector)
    notes = vault.notes()
    if not notes.facts().get(point.subject, Facts()).held:
        raise UsageError("point is not held", on=point.id)
    notes.add(point.subject, "release", {})
    return point


def tag(vault: Vault, selector: str, changes: dict[str, str | None]) -> Point:
    """Set tags, or take them away (None)."""
    (point,) = pick(vault, selector)
    vault.notes().add(point.subject, "tag", dict(changes))
    return point
