"""The index against a dict, with adversarial ids, spills, merges and damaged caches."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.model.context import Context
from safehold.vault.index import cache as cache_module
from safehold.vault.index import view as view_module
from safehold.vault.index.cache import IndexCache
from safehold.vault.index.rows import Location, pack_row
from safehold.vault.index.table import BrokenTable, SortedTable, merge_tables, write_table
from safehold.vault.index.view import ChunkIndex

# Few distinct bytes, so that prefixes collide and rows contain each other's ids.
ids = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.builds(lambda a, b: bytes([a]) * 31 + bytes([b]), st.integers(0, 2), st.integers(0, 3)),
)
PACKS = [f"packs/hot/{n:02x}/{n:02x}{'0' * 62}" for n in range(4)] + [
    f"meta/{n:02x}/{n:02x}{'1' * 62}" for n in range(2)
]
locations = st.builds(
    Location,
    st.sampled_from(PACKS),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**28 - 1),
    st.integers(0, 15),
)
batches = st.lists(st.lists(st.tuples(ids, locations), max_size=30), max_size=8)


@dataclass(frozen=True)
class Row:
    identity: bytes
    offset: int
    stored: int
    plain: int
    codec: int


@dataclass(frozen=True)
class Pack:
    name: str


def encoded(pairs: list[tuple[bytes, Location]]) -> tuple[list[Pack], bytes]:
    rows = sorted(pack_row(i, PACKS.index(at.pack), at.offset, at.stored, at.plain, at.codec) for i, at in pairs)
    return [Pack(p) for p in PACKS], b"".join(rows)


def expect(index: ChunkIndex, pairs: list[tuple[bytes, Location]], excluded: frozenset[str] = frozenset()) -> None:
    model: dict[bytes, set[Location]] = {}
    for identity, location in pairs:
        if location.pack not in excluded:
            model.setdefault(identity, set()).add(location)
    asked = sorted({identity for identity, _ in pairs} | {bytes(32), b"\1" * 32, b"\xff" * 32})
    for identity, found in zip(asked, index.find_many(asked), strict=True):
        assert (found in model[identity]) if identity in model else found is None
        assert set(index.locations(identity)) == model.get(identity, set())


@settings(max_examples=100, deadline=None)
@given(batches, batches, st.sets(st.sampled_from(PACKS)), st.integers(1, 50))
def test_like_a_dict(
    runs: list[list[tuple[bytes, Location]]], added: list[list[tuple[bytes, Location]]], excluded: set[str], spill: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_module, "_RECENT", spill)
        with IndexCache(Path(folder), Context()) as cache:
            for number, run in enumerate(runs):
                packs, rows = encoded(run)
                cache.absorb(f"run-{number}", packs, rows)
            index = cache.index()
        everything = [pair for run in runs for pair in run]
        for batch in added:
            for identity, at in batch:
                index.add(Pack(at.pack), [Row(identity, at.offset, at.stored, at.plain, at.codec)])
                everything.append((identity, at))
        expect(index, everything)
        index.exclude(excluded)
        expect(index, everything, frozenset(excluded))
        with IndexCache(Path(folder), Context()) as cache:
            assert all(f"run-{n}" in cache for n in range(len(runs)))
            expect(cache.index(), [pair for run in runs for pair in run])


def absorb(folder: Path, runs: dict[str, list[tuple[bytes, Location]]]) -> None:
    with IndexCache(folder, Context()) as cache:
        for name, run in runs.items():
            cache.absorb(name, *encoded(run))


RUN = [(bytes([n]) * 32, Location(PACKS[0], n, n, n, 1)) for n in range(100)]


def test_runs_that_are_gone_do_not_count(tmp_path: Path) -> None:
    absorb(tmp_path, {"a": RUN[:50], "b": RUN[50:]})
    with IndexCache(tmp_path, Context()) as cache:
        cache.keep_only(["b"])
        assert "a" not in cache
        if "b" not in cache:
            cache.absorb("b", *encoded(RUN[50:]))
        expect(cache.index(), RUN[50:])
        assert cache.index().find_many([RUN[0][0]]) == [None]


def test_every_damaged_byte_of_a_tables_head_is_noticed(tmp_path: Path) -> None:
    table = write_table(
        tmp_path, ["run"], PACKS, sorted(encoded(RUN)[1][n : n + 48] for n in range(0, 4800, 48)), 100, "t"
    )
    whole = (tmp_path / "t").read_bytes()
    head = len(whole) - table.rows * 48
    noticed = 0
    for at in range(head):
        (tmp_path / "t").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(BrokenTable):
            SortedTable.open(tmp_path / "t")
        noticed += 1
    assert noticed == head > 100
    for length in (0, 3, head, len(whole) - 1):
        (tmp_path / "t").write_bytes(whole[:length])
        with pytest.raises(BrokenTable):
            SortedTable.open(tmp_path / "t")


def test_a_damaged_cache_is_dropped_and_read_again(tmp_path: Path) -> None:
    absorb(tmp_path, {"a": RUN})
    (table,) = tmp_path.glob("*.table")
    table.write_bytes(table.read_bytes()[:-1])
    with IndexCache(tmp_path, Context()) as cache:
        assert "a" not in cache
        assert not table.exists()


def test_tables_are_merged_and_stay_few(tmp_path: Path) -> None:
    with IndexCache(tmp_path, Context()) as cache:
        for n in range(100):
            cache.absorb(f"run-{n}", *encoded([(bytes([n]) * 32, Location(PACKS[n % 6], n, n, n, 0))]))
        assert len(list(tmp_path.glob("*.table"))) <= 5
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.glob("*.table"))
        expect(cache.index(), [(bytes([n]) * 32, Location(PACKS[n % 6], n, n, n, 0)) for n in range(100)])


def test_a_writers_bad_rows_are_left_out(tmp_path: Path) -> None:
    """Rows out of order, and rows that number a pack that is not listed."""
    rows = [pack_row(bytes([n]) * 32, n % 9, 0, 0, 0, 0) for n in (5, 3, 8, 1)]
    with IndexCache(tmp_path, Context()) as cache:
        cache.absorb("run", [Pack(p) for p in PACKS], b"".join(rows))
        found = cache.index().find_many([bytes([n]) * 32 for n in (1, 3, 5, 8)])
    assert [f is not None for f in found] == [True, True, True, False]


def test_no_cache_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with IndexCache(tmp_path / "file", Context()) as cache:
        cache.absorb("run", *encoded(RUN))
        index = cache.index()
    expect(index, RUN)


@pytest.mark.parametrize("room", [0, 9, 20, 40, 70])
def test_a_cache_without_room(tmp_path: Path, room: int) -> None:
    """However full the disk is: no row is missing, and what could be kept is whole."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "none", place], check=True)
    try:
        (place / "other").write_bytes(bytes((80 - room) * 1024))
        runs = {f"run-{n}": RUN[n * 10 : n * 10 + 10] * 20 for n in range(10)}
        for _ in range(2):
            with IndexCache(place, Context()) as cache:
                cache.keep_only(list(runs))
                for name, run in runs.items():
                    if name not in cache:
                        cache.absorb(name, *encoded(run))
                index = cache.index()
            expect(index, RUN)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_merging_keeps_every_row(tmp_path: Path) -> None:
    tables = []
    for part in range(5):
        pairs = RUN[part * 20 : part * 20 + 25]
        packs, rows = encoded(pairs)
        parts: Iterator[bytes] = (rows[n : n + 48] for n in range(0, len(rows), 48))
        tables.append(write_table(tmp_path, [str(part)], [p.name for p in packs], parts, len(pairs), None))
    merged = merge_tables(tmp_path, tables, None)
    assert merged.rows == sum(t.rows for t in tables)
    assert merged.runs == ("0", "1", "2", "3", "4")
    expect(ChunkIndex([merged], tmp_path), RUN)
    assert cache_module._RATIO > 1
