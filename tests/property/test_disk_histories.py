"""Any writes and discards to a disk, backed up in any interleaving with crashes, restore to what the disk was."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.app.points import diff_points
from safehold.app.verify import Depth, verify_points
from safehold.testing.fault_store import FaultStore, Killed
from safehold.vault.disk_builder import DiskTreeBuilder
from safehold.vault.disk_tree import DiskTree, changed_blocks
from safehold.vault.names import ZERO_ID
from safehold.vault.node import Node, encode_node
from safehold.vault.records import Member
from tests.worlds import BLOCK, World, read_back

SIZE = 70 * BLOCK + 123

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.integers(1, 3 * BLOCK), st.integers(0, 3)),
    st.tuples(st.just("discard"), st.integers(0, SIZE - 1), st.integers(1, 40 * BLOCK), st.just(0)),
    st.tuples(st.just("resize"), st.integers(0, SIZE), st.just(0), st.just(0)),
    st.tuples(st.just("backup"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("crash"), st.integers(1, 12), st.just(0), st.booleans()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=3, max_size=14))
def test_histories(history: list[tuple[str, int, int, int]]) -> None:
    play(history)


@pytest.mark.soak
@settings(max_examples=3000, deadline=None)
@given(st.lists(steps, min_size=3, max_size=40))
def test_long_histories(history: list[tuple[str, int, int, int]]) -> None:
    play(history)


def play(history: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        disk = bytearray(SIZE)
        for verb, a, b, c in [*history, ("backup", 0, 0, 0)]:
            if verb == "write":
                end = min(a + b, len(disk))
                disk[a:end] = random.Random(c).randbytes(max(0, end - a))
            elif verb == "discard":
                end = min(a + b, len(disk))
                disk[a:end] = bytes(max(0, end - a))
            elif verb == "resize":
                disk = disk[:a] + bytes(max(0, a - len(disk)))
            elif verb == "backup":
                world.back_up(bytes(disk))
            else:
                faulty = FaultStore(world.store)
                faulty.fail("put", nth=a, lost=bool(c), error=Killed)
                try:
                    world.back_up(bytes(disk), vault=world.open(faulty))
                except Killed:
                    for point in world.fresh().points()[0]:
                        world.expected.setdefault(point.id, bytes(disk))
        vault = world.fresh()
        points, rejected = vault.points()
        assert rejected == []
        assert {p.id for p in points} == set(world.expected)
        for point in points:
            assert read_back(vault, point) == world.expected[point.id]
        assert verify_points(vault, None, Depth.DATA, [], world.ctx).found == []
        if len(points) > 1:
            one, two = points[0], points[-1]
            difference = diff_points(vault, (one, two), f"disk@{one.id}", f"disk@{two.id}")
            before, after = world.expected[one.id], world.expected[two.id]
            differing = {
                n
                for n in range(-(-len(after) // BLOCK))
                if before[n * BLOCK : (n + 1) * BLOCK] != after[n * BLOCK : (n + 1) * BLOCK]
            }
            told = {n for start, end in difference.ranges for n in range(start // BLOCK, -(-end // BLOCK))}
            # Zero blocks have one id whatever their length, so a short zero tail may go unmentioned, and a longer disk mentions all beyond.
            assert differing - told <= {len(before) // BLOCK, len(after) // BLOCK}
            assert told - differing == set() or len(before) != len(after)


identities = st.sampled_from([ZERO_ID, b"a" * 32, b"b" * 32, b"c" * 32])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(identities, max_size=300),
    st.lists(identities, max_size=300),
    st.sampled_from([2, 3, 8, 512]),
    st.randoms(),
)
def test_trees(left: list[bytes], right: list[bytes], refs: int, rng: random.Random) -> None:
    stored: dict[bytes, bytes] = {}

    def put(node: Node) -> bytes:
        data = encode_node(node)
        identity = b"n" + len(stored).to_bytes(31, "big")
        known = next((i for i, d in stored.items() if d == data), None)
        stored.setdefault(known or identity, data)
        return known or identity

    def build(blocks: list[bytes]) -> DiskTree:
        builder = DiskTreeBuilder(len(blocks), refs, put)
        pieces = []
        at = 0
        while at < len(blocks):
            count = rng.randint(1, 40)
            pieces.append((at, blocks[at : at + count]))
            at += count
        rng.shuffle(pieces)
        for first, piece in pieces:
            if all(i == ZERO_ID for i in piece):
                builder.set_zero(first, len(piece))
            else:
                builder.set(first, piece)
        root, levels = builder.finish()
        member = Member("volume", "d", root, levels, len(blocks) * BLOCK, BLOCK, refs, "crash", "crash", (0.0, 0.0))
        return DiskTree(member, refs, stored.__getitem__)

    one, two = build(left), build(right)
    assert one.block_ids(0, len(left)) == left
    assert [b for run in two.runs() for b in [run.data] * run.count] == [i != ZERO_ID for i in right]
    assert list(changed_blocks(one, two)) == [n for n, i in enumerate(right) if n >= len(left) or left[n] != i]


def test_an_incomplete_tree_is_not_finished() -> None:
    builder = DiskTreeBuilder(10, 4, lambda node: b"x" * 32)
    builder.set(0, [b"a" * 32])
    with pytest.raises(ValueError, match="not complete"):
        builder.finish()
