"""What a log begins with says of every block what the map says."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold.blocks import summary
from safehold.blocks.layers import MISSING, PARTIAL, PRESENT
from safehold.blocks.maps import BlockMap
from safehold.blocks.summary import block_states

RUNS = st.lists(st.tuples(st.sampled_from([MISSING, PARTIAL, PRESENT]), st.integers(1, 40)), min_size=1, max_size=20)


@given(RUNS, st.integers(1, 64))
def test_runs_give_the_map_back(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], piece: int
) -> None:
    cells = b"".join(bytes([value]) * count for value, count in runs)
    states = _map(tmp_path_factory.mktemp("map") / "states", cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "_PIECE", piece)
        changes = list(block_states(states))
    again = bytearray(len(cells))
    for one in changes:
        again[one.start : one.start + one.cells] = bytes([one.value]) * one.cells
    assert bytes(again) == cells
    assert sum(one.cells for one in changes) == len(cells)
    for before, after in itertools.pairwise(changes):
        assert before.value != after.value or after.start % piece == 0


def _map(path: Path, cells: bytes) -> BlockMap:
    states = BlockMap.create(path, len(cells))
    for at, value in enumerate(cells):
        states.fill(at, at + 1, value)
    return states
