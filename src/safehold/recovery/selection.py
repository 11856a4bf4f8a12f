"""What of a stored tree of files is meant, and the pages that hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safehold.model.errors import DamageError
from safehold.model.files import path_key
from safehold.vault.names import ZERO_ID
from safehold.vault.tree import EntryAt, Gap, LeafRef, StoredTree

__all__ = ["Selection", "selected_pages"]


@dataclass(frozen=True)
class Selection:
    """What of a tree is meant: everything below `base` (the empty path: all of it), of that what `include` takes.

    `include` is asked for paths from the base; a directory that is not taken itself is still looked into.
    """

    base: bytes = b""
    include: Callable[[bytes], bool] | None = None

    def relative(self, path: bytes) -> bytes:
        """A path below the base, from the base."""
        return path[len(self.base) + 1 :] if self.base else path

    def takes(self, relative: bytes) -> bool:
        """True where a path, or a directory above it, is included."""
        if self.include is None:
            return True
        parts = relative.split(b"/")
        return any(self.include(b"/".join(parts[:n])) for n in range(1, len(parts) + 1))


def selected_pages(tree: StoredTree, selection: Selection) -> Iterator[list[tuple[bytes, EntryAt]] | Gap]:
    """What is selected with its path from the base, page by page, and gaps among which there may be more of it. Where the base is a directory
    it comes too, with an empty path.
    """
    base = selection.base
    if base:
        yield from _top(tree, base)
    start = (path_key(base), b"")
    for page in tree.pages(start):
        if isinstance(page, Gap):
            if page.first.key > start and not _within(page.first.parent, base):
                return
            yield page
            continue
        chosen = []
        over = False
        for found in page:
            if not _within(found.parent, base):
                over = found.key > start
                continue
            relative = selection.relative(found.path)
            if not found.entry.name:
                chosen.append((b"", found))
            elif selection.takes(relative):
                chosen.append((relative, found))
        yield chosen
        if over:
            return


def _top(tree: StoredTree, base: bytes) -> Iterator[list[tuple[bytes, EntryAt]] | Gap]:
    """The base itself, where it is a directory."""
    try:
        top = tree.find(base)
    except DamageError as error:
        parent, _, name = base.rpartition(b"/")
        itself = LeafRef(ZERO_ID, parent, name, 1)
        yield Gap(itself, itself, str(error))
        return
    if top is not None and top.entry.is_directory:
        yield [(b"", top)]


def _within(parent: bytes, base: bytes) -> bool:
    return not base or parent == base or parent.startswith(base + b"/")
