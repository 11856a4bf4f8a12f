"""Trees as a writer that means harm could make them: links and what lies below them, one inode under many names. Restored, nothing outside of the
target changes.
"""

from __future__ import annotations

import os
import random
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from safehold.adapters.files import target as targets
from safehold.adapters.files.destination import open_directory
from safehold.model.context import Context
from safehold.model.errors import SafeholdError
from safehold.model.files import Entry, path_key
from safehold.recovery.selection import Selection
from safehold.recovery.tree import FileLosses, write_tree
from safehold.vault.fetch import ChunkReader, Found
from safehold.vault.tree import Group
from tests.unit.vault.test_stored_tree import FILE, KEY, Nodes, build, entry


class NoChunks(ChunkReader):
    """There is nothing in any file."""

    remote = False
    dedup_key = KEY

    def __init__(self) -> None:
        pass

    def many(self, identities: Sequence[bytes]) -> Iterator[Found]:
        return iter(())


def hostile(rng: random.Random, outside: Path) -> dict[bytes, dict[bytes, Entry]]:
    """Groups of entries by directory, whether or not there is such a directory."""
    links = [os.fsencode(outside), b"../outside", b"../../outside", b"/etc", b"a", b".", b".."]
    groups: dict[bytes, dict[bytes, Entry]] = {}
    for _ in range(rng.randrange(2, 9)):
        above = rng.choice([b"", b"a", b"a/b", b"b", b"a/b/c"])
        name = rng.choice([b"a", b"b", b"c", b"file", b"new"])
        same = {"fs": 0, "ino": rng.choice([1, 2]), "links": rng.choice([1, 2, 3])}
        kind = rng.choice(["link", "link", "directory", "fifo", "file", "file"])
        if kind == "link":
            one = entry(name, mode=stat.S_IFLNK | 0o777, target=rng.choice(links), **same)
        elif kind == "directory":
            one = entry(name, mode=stat.S_IFDIR | 0o777, uid=1, mtime=1, **same)
        elif kind == "fifo":
            one = entry(name, mode=stat.S_IFIFO | 0o777, uid=1, mtime=1, **same)
        else:
            one = entry(name, mode=FILE | 0o4777, uid=1, mtime=1, xattrs={b"user.x": b"x"}, **same)
        groups.setdefault(above, {})[name] = one
    return groups


def state(place: Path) -> list[tuple[object, ...]]:
    """What is in a directory, and what it says of itself."""
    found = [place, *sorted(place.rglob("*"))]
    return [(p, p.lstat().st_mode, p.lstat().st_uid, p.lstat().st_mtime_ns, p.lstat().st_nlink) for p in found]


def escapes(seeds: range) -> list[int]:
    """Seeds of trees that changed something outside, restored into an empty directory or over what another one left."""
    out = []
    for seed in seeds:
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            outside, top = Path(folder) / "outside", Path(folder) / "top"
            outside.mkdir()
            (outside / "file").write_text("untouched")
            before = state(outside)
            for existing in (False, True, True):
                groups = hostile(rng, outside)
                pages = [
                    [Group(above, [names[n] for n in sorted(names)])]
                    for above, names in sorted(groups.items(), key=lambda one: path_key(one[0]))
                ]
                try:
                    tree = build(Nodes(), pages)
                    with open_directory(str(top), existing=existing) as target:
                        write_tree(
                            tree,
                            NoChunks(),
                            Selection(),
                            target,
                            FileLosses(True),
                            Context(),
                            compare=rng.random() < 0.5,
                        )
                except SafeholdError:
                    continue
            if state(outside) != before or {p.name for p in Path(folder).iterdir()} - {"outside", "top"}:
                out.append(seed)
    return out


def test_nothing_outside_changes() -> None:
    assert escapes(range(200)) == []


@pytest.mark.soak
def test_nothing_outside_changes_for_long() -> None:
    assert escapes(range(1000, 100_000)) == []


def test_following_links_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_DIRECTORY", targets._DIRECTORY & ~os.O_NOFOLLOW)
    assert escapes(range(200))
