"""Rows on their way into base runs: none is lost, and each run is about packs of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.vault.gc import runs
from safehold.vault.index.rows import PLAIN_BITS, ROW, Location

PACKS = [f"packs/hot/{n:02x}/{n:02x}{'0' * 62}" for n in range(9)]
rows = st.lists(
    st.tuples(
        st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\1" * 32]),
        st.builds(
            Location, st.sampled_from(PACKS), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)
        ),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(rows, st.integers(1, 60), st.integers(1, 12), st.integers(1, 5))
def test_all_rows_by_their_packs(
    pairs: list[tuple[bytes, Location]], most_rows: int, most_groups: int, in_memory: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_SHARD_ROWS", most_rows)
        patch.setattr(runs, "_MOST_GROUPS", most_groups)
        patch.setattr(runs, "_BUFFER", in_memory * ROW.size)
        shards = [
            (packs, bytes(shard)) for packs, shard in runs._shards(sorted(pairs), dict.fromkeys(PACKS, 1), Path(folder))
        ]
    found = []
    for packs, shard in shards:
        unpacked = list(ROW.iter_unpack(shard))
        assert 0 < len(unpacked) <= most_rows
        assert [row[0] for row in unpacked] == sorted(row[0] for row in unpacked)
        assert {row[1] for row in unpacked} == set(range(len(packs)))
        found += [
            (i, Location(packs[n], offset, stored, mixed & (1 << PLAIN_BITS) - 1, mixed >> PLAIN_BITS))
            for i, n, offset, stored, mixed in unpacked
        ]
    assert sorted(found) == sorted(pairs)
    if most_groups >= len(PACKS):
        # Each pack is a group of its own: only one with more rows than a run holds is in several.
        for pack in PACKS:
            several = sum(pack in packs for packs, _ in shards) > 1
            assert not several or sum(at.pack == pack for _, at in pairs) > most_rows
