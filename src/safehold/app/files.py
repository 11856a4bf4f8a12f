"""Looking at the files in a point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from safehold.app.points import member_of, parse_selector, pick
from safehold.model.errors import DamageError, UsageError
from safehold.model.files import Form
from safehold.recovery.tree import file_data, write_in_order
from safehold.vault.catalogue import Point
from safehold.vault.content import read_parts
from safehold.vault.records import Member
from safehold.vault.tree import EntryAt, StoredTree, changed_entries
from safehold.vault.vault import Vault

__all__ = ["FileChange", "Place", "cat", "diff_files", "find_files", "list_files", "open_place", "tree_path"]


def tree_path(text: str) -> bytes:
    """A path as users write it, from the top of the tree, without slashes at its ends."""
    path = os.path.normpath(os.fsencode(text)).strip(b"/") if text else b""
    return b"" if path == b"." else path


@dataclass(frozen=True)
class Place:
    """A path in a tree of a point."""

    point: Point
    member: Member
    tree: StoredTree
    path: bytes


def open_place(vault: Vault, text: str) -> Place:
    """What `RESOURCE@WHEN[:PATH]` names in a tree. UsageError, and as `points.pick`."""
    (point,) = pick(vault, text)
    return _place(vault, point, text)


def _place(vault: Vault, point: Point, text: str) -> Place:
    selector = parse_selector(text)
    member = member_of(point, selector.resource)
    if member.kind != "tree":
        raise UsageError(
            f"there are no files in a {member.kind}",
            on=text,
            remedy="restore it" if member.kind == "volume" else "see: safehold cat",
        )
    return Place(point, member, vault.tree(point, member), tree_path(selector.path))


def list_files(place: Place, *, recursive: bool) -> Iterator[EntryAt]:
    """The entries of a directory, everything below it, or the single file that the place is. UsageError where there is nothing."""
    found = place.tree.find(place.path) if place.path else None
    if place.path and found is None:
        raise UsageError("no such file or directory in this point", on="/" + os.fsdecode(place.path))
    if found is not None and not found.entry.is_directory:
        yield found
        return
    entries = place.tree.below(place.path) if recursive else place.tree.listing(place.path)
    yield from (entry for entry in entries if entry.entry.name)


def find_files(place: Place, fits: Callable[[bytes], bool]) -> Iterator[EntryAt]:
    """Entries at or below the place whose path from the top fits."""
    return (entry for entry in list_files(place, recursive=True) if fits(entry.path))


def cat(vault: Vault, text: str, write: Callable[[memoryview], None]) -> None:
    """Write a file's or a stream's content, in order. UsageError for anything else; DamageError where it cannot be read whole."""
    selector = parse_selector(text)
    (point,) = pick(vault, text)
    member = member_of(point, selector.resource)
    chunks = vault.chunks(point)
    if member.kind == "stream":
        parts = read_parts(member.root, member.size, chunks.one) if member.size else iter(())
        write_in_order(parts, chunks, write)
    elif member.kind == "tree":
        found = vault.tree(point, member).find(tree_path(selector.path))
        if found is None or not found.entry.is_file:
            raise UsageError("no such file in this point" if found is None else "not a file", on=text)
        if found.entry.form == Form.PIECE:
            for _, data in file_data(found, chunks, lambda reason: _lost(text, reason)):
                write(memoryview(data))
        else:
            write_in_order(found.parts(chunks.one), chunks, write)
    else:
        raise UsageError(f"there are no files in a {member.kind}", on=text, remedy="restore it and mount it")


def _lost(text: str, reason: str) -> None:
    raise DamageError(f"cannot be read whole: {reason}", on=text, remedy="take it from another point")


@dataclass(frozen=True)
class FileChange:
    """A path that differs: `added`, `removed`, `changed` (its content or kind), or `attributes`."""

    path: bytes
    how: str


def diff_files(vault: Vault, pair: Sequence[Point], left: str, right: str) -> Iterator[FileChange]:
    """How the files of two points of trees that the texts named differ, at or below their paths. UsageError where they cannot be compared."""
    old, new = (_place(vault, point, text) for point, text in zip(pair, (left, right), strict=True))
    if old.point.dedup_key != new.point.dedup_key:
        raise UsageError(
            "these points cannot be compared by their ids: they are of different dedup domains", on=f"{left} {right}"
        )
    base = new.path or old.path
    for before, after in changed_entries(old.tree, new.tree):
        found = after or before
        assert found is not None
        if base and found.path != base and not found.path.startswith(base + b"/"):
            continue
        if before is None or after is None:
            yield FileChange(found.path, "added" if before is None else "removed")
            continue
        a, b = before.entry, after.entry
        same = before.references == after.references and (a.target, a.rdev, a.mode >> 12) == (
            b.target,
            b.rdev,
            b.mode >> 12,
        )
        yield FileChange(found.path, "attributes" if same else "changed")
