"""Verifying a vault against itself and against a list of what should be in it."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from safehold.app.findings import forget_points, remember_findings
from safehold.app.points import select
from safehold.app.sharing import warn_of_shared_names
from safehold.model.context import Context
from safehold.model.errors import StoreError, UsageError
from safehold.recovery.rolling import ReadLog, Rolled, verify_rolling
from safehold.recovery.verify import Finding, Findings, verify_data, verify_structure
from safehold.vault.access import read_slots
from safehold.vault.catalogue import Point
from safehold.vault.gc.quarantine import note_packs
from safehold.vault.vault import Vault

__all__ = [
    "Depth",
    "Expected",
    "check_expected",
    "parse_expected",
    "verify_next",
    "verify_points",
]


_DAY = 86400.0


class Depth(enum.Enum):
    """How far a verification looks into the points: that everything is there, or that every byte can be read and is
    right.
    """

    STRUCTURE = "structure"
    DATA = "data"


class Expected(msgspec.Struct, frozen=True):
    """A point that should be in the vault: its object's name and the BLAKE3 of its stored bytes in hex."""

    name: str
    digest: str


class _Listing(msgspec.Struct, frozen=True):
    points: tuple[Expected, ...]


def parse_expected(text: bytes, *, on: str) -> list[Expected]:
    """The list that `safehold points --json` prints. UsageError naming the file."""
    try:
        return list(msgspec.json.decode(text, type=_Listing).points)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"not a list of points ({error})", on=on, remedy="make one with: safehold points --json > FILE"
        ) from error


def check_expected(points: Sequence[Point], expected: Sequence[Expected]) -> list[Finding]:
    """What is missing, or is another point than the one expected: the only check that sees an older valid state."""
    digests = {point.name: point.digest.hex() for point in points}
    findings = []
    for one in expected:
        if one.name not in digests:
            findings.append(Finding("expected point is not in the vault", one.name))
        elif digests[one.name] != one.digest:
            findings.append(Finding("point is not the one that was expected", one.name))
    return findings


def verify_points(
    vault: Vault, selector: str | None, depth: Depth, expected: Sequence[Expected], ctx: Context
) -> Findings:
    """Verify one point or all of them. Problems of the vault as a whole are findings too."""
    points, rejected = vault.points(fresh=True)
    chosen = [select(points, selector, rejected)] if selector else points
    ctx.progress.start("verify", sum(member.size for point in chosen for member in point.body.members))
    findings = (verify_data if depth is Depth.DATA else verify_structure)(vault, chosen, ctx)
    ctx.progress.done()
    note_packs(vault, (), (), findings.packs)
    if depth is Depth.DATA:
        _note_proofs(vault, chosen, findings)
    if selector is None:
        for one in rejected:
            if one.void:
                remedy = f" → {one.remedy}" if one.remedy else ""
                vault.ctx.progress.warn(f"does not count: {one.name}: {one.reason}{remedy}")
            else:
                findings.add(Finding(one.reason, one.name))
        for problem in (*vault.problems, *read_slots(vault.store)[1]):
            findings.add(Finding(problem.what, problem.on))
        _demand_second_copy(vault)
        warn_of_shared_names(points, ctx)
    if findings.found or selector is None:
        remember_findings(vault, findings)
    elif depth is Depth.DATA:
        # What was known of it is mended.
        forget_points(vault, chosen)
    for finding in check_expected(points, expected):
        findings.add(finding)
    return findings


def _demand_second_copy(vault: Vault) -> None:
    """Warn unless a recovery kit is known to work. However many key slots there are, all of them lie in the vault and are lost with it."""
    if not vault.notes().kit_known():
        vault.ctx.progress.warn(
            "no second copy of the key is known: print the recovery kit (safehold key export --paper) and prove that it "
            "works (safehold key check --kit FILE)"
        )


def _note_proofs(vault: Vault, points: Sequence[Point], findings: Findings) -> None:
    """Note of each point without findings that all of it was read; at most once a day. Where the vault cannot be written to, a warning says so."""
    try:
        _add_proofs(vault, points, findings)
    except StoreError as error:
        vault.ctx.progress.warn(f"that all of it was read could not be noted in the vault: {error}")


def _add_proofs(vault: Vault, points: Sequence[Point], findings: Findings) -> None:
    notes = vault.notes()
    facts = notes.facts()
    bad = {finding.point for finding in findings.found}
    now = vault.store_time()
    for point in points:
        before = facts[point.subject].data if point.subject in facts else 0.0
        if point.id not in bad and before < now - _DAY:
            notes.add(point.subject, "verified", {"depth": "data", "since": now})


def verify_next(vault: Vault, older_than: float, budget: int, ctx: Context) -> Rolled:
    """One run of a verification that goes on from run to run; see `recovery.rolling`."""
    points, rejected = vault.points(fresh=True)
    rolled = verify_rolling(vault, points, older_than, budget, ReadLog(vault.places.read_log), ctx)
    for one in rejected:
        if not one.void:
            rolled.findings.add(Finding(one.reason, one.name))
    for problem in vault.problems:
        rolled.findings.add(Finding(problem.what, problem.on))
    remember_findings(vault, rolled.findings)
    _demand_second_copy(vault)
    warn_of_shared_names(points, ctx)
    return rolled
