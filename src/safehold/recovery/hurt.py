"""What chunks that cannot be read are to their owner: byte ranges of a disk or stream, files of a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from safehold.model.errors import DamageError
from safehold.model.files import Form
from safehold.model.shown import printable
from safehold.model.units import format_count
from safehold.recovery.units import nodes_or_lost
from safehold.vault.catalogue import Point
from safehold.vault.content import LostParts, parts_or_lost
from safehold.vault.disk import StoredDisk
from safehold.vault.disk_tree import PagesSeen
from safehold.vault.node import split_ids
from safehold.vault.records import Member
from safehold.vault.tree import Gap, StoredTree
from safehold.vault.vault import Vault

__all__ = ["Hurt", "hurt_by"]

_NAMED = 5
"""Files or ranges that a message names; the rest are counted."""

_MOST = 1000
"""Ranges of a disk, and metadata chunks, that are missed before the look for more ends: a hostile writer's disk can have one bad block at
more places than anybody can count, and each chunk that never was costs some looking for.
"""


@dataclass
class Hurt:
    """Byte ranges, files and parts of trees that cannot be read, by the reason. `more` where there may be others."""

    ranges: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    more: bool = False

    def range(self, reason: str, start: int, end: int) -> None:
        """Bytes `start` to `end` of a disk or stream; ranges of one reason come in order."""
        ranges = self.ranges.setdefault(reason, [])
        if ranges and ranges[-1][1] == start:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((start, end))

    def file(self, reason: str, path: str) -> None:
        """A file of a tree."""
        self.files.setdefault(reason, set()).add(path)

    def told(self) -> Iterator[str]:
        """One sentence for each reason, and for each part of a tree."""
        least = " at least" * self.more
        for reason, ranges in self.ranges.items():
            spelled = [f"{start}-{end - 1}" for start, end in ranges]
            yield f"bytes {_some(spelled)}{least} cannot be read: {reason}"
        for gap in self.gaps:
            yield f"{gap.told} cannot be read: {gap.reason}"
        for reason, files in self.files.items():
            yield f"{format_count(len(files), 'file')}{least} cannot be read: {_some(sorted(files))}: {reason}"


def _some(texts: list[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def hurt_by(vault: Vault, point: Point, member: Member, bad: Mapping[bytes, str], clean: PagesSeen) -> Hurt:
    """What of a member is lost with the chunks `bad`, which map to reasons, and with metadata that cannot be read. `clean` are pages of disks
    of this dedup domain that are known to have neither. DamageError where the member is none that can be.
    """
    hurt = Hurt()
    if member.kind == "volume":
        _disk(vault.disk(point, member), bad, clean, hurt)
    elif member.kind == "tree":
        _tree(vault.tree(point, member), bad, hurt)
    elif member.kind == "stream":
        _stream(member, vault.chunks(point).one, bad, hurt)
    else:
        _other(member, vault.chunks(point).one, bad, hurt)
    return hurt


def _disk(disk: StoredDisk, bad: Mapping[bytes, str], clean: PagesSeen, hurt: Hurt) -> None:
    runs = disk.tree.hurt(bad, clean)
    for run in islice(runs, _MOST):
        hurt.range(run.lost, *disk.span(run.first, run.count))
    hurt.more = next(runs, None) is not None


def _tree(tree: StoredTree, bad: Mapping[bytes, str], hurt: Hurt) -> None:
    missed = 0
    for page in tree.pages():
        if isinstance(page, Gap):
            hurt.gaps.append(page)
            missed += 1
        for found in page if isinstance(page, list) else ():
            for part in [found.piece] if found.entry.form == Form.PIECE else found.parts_or_lost(tree.load):
                if isinstance(part, LostParts):
                    hurt.file(str(part.error), "/" + printable(found.path))
                    missed += 1
                elif part[0] in bad:
                    hurt.file(bad[part[0]], "/" + printable(found.path))
        if missed >= _MOST:
            hurt.more = True
            return


def _stream(member: Member, load: Callable[[bytes], bytes], bad: Mapping[bytes, str], hurt: Hurt) -> None:
    at = missed = 0
    for part in parts_or_lost(member.root, member.size, load) if member.size else ():
        length = part.length if isinstance(part, LostParts) else part[1]
        if isinstance(part, LostParts):
            hurt.range(str(part.error), at, at + length)
            missed += 1
        elif part[0] in bad:
            hurt.range(bad[part[0]], at, at + length)
        if missed >= _MOST:
            hurt.more = True
            return
        at += length


def _other(member: Member, load: Callable[[bytes], bytes], bad: Mapping[bytes, str], hurt: Hurt) -> None:
    missed = 0
    for one in nodes_or_lost(member.root, load):
        if isinstance(one, DamageError):
            hurt.file(str(one), member.name)
            missed += 1
            if missed >= _MOST:
                hurt.more = True
                return
            continue
        for chunk in split_ids(one.chunks):
            if chunk in bad:
                hurt.file(bad[chunk], member.name)
