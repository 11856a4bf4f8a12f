"""Finding points and telling about them."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from safehold.model.errors import UsageError
from safehold.model.resource import what_there_is
from safehold.vault.catalogue import Point, Rejected, choose
from safehold.vault.disk_tree import changed_blocks
from safehold.vault.records import Member
from safehold.vault.vault import Vault

__all__ = [
    "Difference",
    "Selector",
    "diff_points",
    "made_by",
    "member_of",
    "of_pattern",
    "parse_selector",
    "parse_when",
    "pick",
    "read_points",
    "select",
]

_WHEN = re.compile(r"(\d{4})-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?)?(Z?)")


@dataclass(frozen=True)
class Selector:
    """`RESOURCE@WHEN[:PATH]` taken apart."""

    resource: str
    when: str
    path: str = ""


def parse_selector(text: str) -> Selector:
    """UsageError where the text is no `RESOURCE@WHEN`; WHEN defaults to latest."""
    resource, at, rest = text.rpartition("@") if "@" in text else (text, "", "latest")
    match = re.fullmatch(r"((?:\d{4}-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?)?)?Z?)|[^:]+)(?::(.*))?", rest, re.DOTALL)
    if not match or (at and not rest):
        raise UsageError(
            "not a point", on=text, remedy="write RESOURCE@latest, RESOURCE@2026-11-20T10:00 or RESOURCE@ID"
        )
    return Selector(resource, match[1], match[2] or "")


def parse_when(text: str) -> tuple[float, float]:
    """First and last second that a time text covers: local time, or UTC with a trailing Z. ValueError for anything
    else.
    """
    match = _WHEN.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no time")
    year, month, day, hour, minute, second = (int(g) if g else None for g in match.groups()[:6])
    zone = UTC if match[7] else None
    assert year is not None
    assert month is not None
    start = datetime(year, month, day or 1, hour or 0, minute or 0, second or 0, tzinfo=zone)
    if day is None:
        span = timedelta(days=calendar.monthrange(year, month)[1])
    elif hour is None:
        span = timedelta(days=1)
    else:
        span = timedelta(minutes=1) if second is None else timedelta(seconds=1)
    try:
        return start.timestamp(), (start + span).timestamp() - 1e-6
    except OverflowError:
        raise ValueError(f"{text!r} is no time") from None


def select(points: Sequence[Point], text: str, rejected: Sequence[Rejected]) -> Point:
    """The point that `RESOURCE@WHEN` names; UsageError otherwise. DamageError where the newest is asked for and may be one of `rejected`."""
    selector = parse_selector(text)
    return choose(points, selector.resource, selector.when, parse_when, rejected)


def read_points(vault: Vault) -> tuple[list[Point], list[Rejected]]:
    """The vault's points, oldest first, and what claims to be one and is none: that is warned of."""
    points, rejected = vault.points()
    for one in rejected:
        # What this machine made itself was told of when the vault was opened.
        if one.name not in vault.lost:
            vault.ctx.progress.warn(one.problem)
    return points, rejected


def of_pattern(points: Sequence[Point], rejected: Sequence[Rejected], pattern: str) -> list[Point]:
    """The points of the resources of that name, or that a shell pattern fits. UsageError where it fits nothing that anybody knows of."""

    def fits(name: str) -> bool:
        return name == pattern or fnmatchcase(name, pattern)

    names = {name for point in points for name in point.resources} | {
        name for one in rejected for name in one.resources
    }
    if not any(fits(name) for name in names):
        remedy = what_there_is(pattern, names, "safehold points")
        raise UsageError("no points of this resource", on=pattern, remedy=remedy)
    return [point for point in points if any(fits(name) for name in point.resources)]


def made_by(vault: Vault, points: Sequence[Point], prefix: str) -> list[Point]:
    """The points of the one writer whose id starts with `prefix`. UsageError where none does, or more than one."""
    known = {point.wid for point in points} | vault.writers.keys()
    fitting = [wid for wid in known if wid.hex().startswith(prefix.lower())]
    if len(fitting) != 1:
        raise UsageError("no single writer of that id", on=prefix, remedy="see them: safehold key list")
    return [point for point in points if point.wid == fitting[0]]


def pick(vault: Vault, *texts: str) -> list[Point]:
    """The points of a vault that the texts name; what is no valid point is warned of. Raises as `select` does."""
    points, rejected = read_points(vault)
    return [select(points, text, rejected) for text in texts]


def member_of(point: Point, resource: str) -> Member:
    """The member that the selector means: by name, or the only one."""
    named = [m for m in point.body.members if m.name == resource]
    if named:
        return named[0]
    if len(point.body.members) == 1 and not resource:
        return point.body.members[0]
    raise UsageError("point has several members", on=point.id, remedy="name one: " + ", ".join(point.resources))


@dataclass(frozen=True)
class Difference:
    """How two points of a disk differ: `ranges` of the newer one in bytes (start, end), and both sizes."""

    old: Point
    new: Point
    old_size: int
    new_size: int
    ranges: list[tuple[int, int]]

    @property
    def changed(self) -> int:
        """Bytes that differ, in whole blocks."""
        return sum(end - start for start, end in self.ranges)


def diff_points(vault: Vault, pair: Sequence[Point], left: str, right: str) -> Difference:
    """Compare two points, which the texts named, by their block ids; no data is read."""
    old, new = pair
    before, after = member_of(old, parse_selector(left).resource), member_of(new, parse_selector(right).resource)
    same_ids = (
        old.dedup_key == new.dedup_key and before.block_size == after.block_size and before.page_refs == after.page_refs
    )
    if not same_ids:
        raise UsageError(
            "these points cannot be compared by their ids: they are of different dedup domains or block sizes",
            on=f"{left} {right}",
        )
    blocks = changed_blocks(vault.disk(old, before).tree, vault.disk(new, after).tree)
    return Difference(old, new, before.size, after.size, list(_ranges(blocks, after)))


def _ranges(blocks: Iterator[int], member: Member) -> Iterator[tuple[int, int]]:
    start = end = -1
    for block in blocks:
        if block != end:
            if end > start >= 0:
                yield start * member.block_size, min(end * member.block_size, member.size)
            start = block
        end = block + 1
    if end > start >= 0:
        yield start * member.block_size, min(end * member.block_size, member.size)
