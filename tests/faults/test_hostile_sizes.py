"""Objects that are far larger than any of their kind: nobody reads them whole, and everything else goes on."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from safehold.app.verify import verify_next
from safehold.model.clock import SystemClock
from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.objects.memory import MemoryStore
from safehold.recovery.verify import verify_stored
from safehold.vault import pack as packs
from safehold.vault.bounds import check_size, largest_pack
from safehold.vault.envelope import StoredCheck
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.sessions import Sessions
from safehold.vault.names import Kind, commit_name, pack_name, run_name, session_name
from safehold.vault.node import Node, encode_node
from safehold.vault.pack import PackBuilder, parse_header
from safehold.vault.records import RunPack
from safehold.vault.sealing import ChunkSealer, chunk_id
from safehold.vault.writers import WriterKey
from tests.faults.test_hostile_upkeep import all_well
from tests.faults.test_stolen_writer import MINE, VICTIM, Thief
from tests.worlds import World

_WHOLE = 33 * 1024 * 1024
"""Bytes in one piece that are too many here: more than any honest object of these tests has."""


class SmallMachine(MemoryStore):
    """Has no room for large objects."""

    def get(self, name: str) -> bytes:
        self._demand(self.head(name).size)
        return super().get(name)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        self._demand(len(buf))
        super().read_into(name, offset, buf)

    def _demand(self, size: int) -> None:
        if size > _WHOLE:
            raise MemoryError


class Lines:
    """Keeps warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, what: str, total: int | None) -> None: ...
    def advance(self, amount: int) -> None: ...
    def done(self) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, SmallMachine(), ctx=Context(clock=SystemClock(), progress=Lines()))


@pytest.fixture
def stolen(world: World) -> WriterKey:
    writer = world.new_writer("mine*")
    world.back_up(MINE, "mine", world.open_writer(writer))
    world.back_up(VICTIM, "victim")
    return WriterKey.load(writer.export("somewhere"), on="credential")


def large_pack(world: World, thief: Thief, needed: bytes) -> str:
    """A pack beyond the cap with one small chunk that a point of the thief needs."""
    who = thief.who
    size = largest_pack(world.parameters) + (1 << 20)
    builder = PackBuilder(Kind.PACK, who.vault, thief.key, thief.secret.session_key, mmap.mmap(-1, size * 2), size * 2)
    sealer = ChunkSealer(who.vault, thief.secret.session_key, 1)
    builder.add(sealer, chunk_id(who.dedup_key, needed), memoryview(needed))
    filling = os.urandom(12 << 20)
    for _ in range(-(-size // len(filling))):
        builder.add(sealer, os.urandom(32), memoryview(filling))
    data = bytes(builder.finish())
    name = pack_name(Kind.PACK, blake3(data).digest(), "hot")
    world.store.put(name, [data])
    thief.run(RunPack(name, len(data)), builder.rows, wid=who.wid, domain=who.domain, index_key=who.index_key, number=1)
    return name


def test_a_large_pack_is_left_alone(world: World, stolen: WriterKey) -> None:
    thief = Thief(world, stolen)
    node = encode_node(Node("disk.leaf", chunks=chunk_id(stolen.dedup_key, b"needed")))
    root = chunk_id(stolen.dedup_key, node)
    pack, rows = thief.pack([(root, node)], Kind.META)
    thief.run(pack, rows, wid=stolen.wid, domain=stolen.domain, index_key=stolen.index_key)
    name = large_pack(world, thief, b"needed")
    thief.point(commit_name(stolen.wid, thief.sid), "mine", root)
    for _ in range(2):
        Prune(world.fresh(), world.root, lambda session, now: True, world.ctx).run()
    assert any("left as it is" in line and name in line for line in world.ctx.progress.lines)  # type: ignore[attr-defined]
    assert name in {stamp.name for stamp in world.store.list("packs/")}
    assert verify_stored(world.store, world.ctx).found == [], "it is hashed in pieces"
    all_well(world)
    rolled = verify_next(world.fresh(), 0.0, 1 << 40, world.ctx)
    assert name in {finding.on for finding in rolled.findings.found}


def test_large_objects_of_other_kinds_are_damaged(world: World, stolen: WriterKey) -> None:
    names = [
        session_name(stolen.wid, os.urandom(16)),
        run_name(stolen.wid, os.urandom(16), 0),
        commit_name(stolen.wid, os.urandom(16)),
    ]
    sizes = {}
    for name in names:
        sizes[name] = size = _LARGE[name.split("/")[0]]
        world.store.put(name, [mmap.mmap(-1, size)])
    vault = world.fresh()
    assert [one.name for one in vault.points()[1]] == [names[2]]
    vault.finder(stolen.wid)
    assert any(names[1] in line and "more than any of its kind" in line for line in world.ctx.progress.lines)  # type: ignore[attr-defined]
    sessions = Sessions(vault).open()
    assert [one.info for one in sessions] == [None]
    found = {finding.on: finding.what for finding in verify_stored(world.store, world.ctx).found}
    assert all("more than any of its kind" in found[name] for name in names)
    all_well(world)


_LARGE = {"sessions": _WHOLE + 1, "index": (256 << 20) + 1, "points": (64 << 20) + 1}


def header(count: int, *entries: bytes) -> bytes:
    return struct.pack("<5scH16s", b"SHPK\x01", b"d", count, bytes(16)) + b"".join(entries)


def entry(length: int) -> bytes:
    return struct.pack("<16s16sHHH", bytes(16), bytes(16), 0, 1, length) + bytes(length)


def test_headers_are_bounded() -> None:
    most = packs.MAX_SESSIONS
    whole = parse_header(header(most, *[entry(112)] * most), bytes(16), "pack")
    assert whole is not None
    assert len(whole.sessions) == most
    for hostile in (header(most + 1), header(1, entry(5000)), header(65535, entry(112))):
        with pytest.raises(DamageError):
            parse_header(hostile, bytes(16), "pack")
    # Whatever they claim, so many bytes settle it.
    assert parse_header(header(most, *[entry(4096)] * most), bytes(16), "pack") is not None
    assert len(header(most, *[entry(4096)] * most)) == packs.LARGEST_HEADER


def test_what_this_program_writes_is_within_the_bounds(world: World, stolen: WriterKey) -> None:
    for stamp in world.store.list(""):
        check_size(stamp)
        if stamp.name.startswith(("packs/", "meta/")):
            assert stamp.size <= largest_pack(world.parameters)


def test_pieces_of_any_size_tell_the_same(world: World, stolen: WriterKey) -> None:
    def told(name: str, data: bytes, pieces: Sequence[int]) -> bool:
        check = StoredCheck(name, len(data))
        at = 0
        while at < len(data):
            size = pieces[at % len(pieces)]
            check.update(memoryview(data)[at : at + size])
            at += size
        return check.right()

    kinds = set()
    for stamp in world.store.list(""):
        kinds.add(stamp.name.split("/")[0])
        data = world.store.get(stamp.name)
        for pieces in ((1 << 20,), (1,), (33, 31, 7)):
            assert told(stamp.name, data, pieces)
            assert not told(stamp.name, data[:-1], pieces)
            assert not told(stamp.name, bytes([data[0] ^ 1]) + data[1:], pieces)
            assert not told(stamp.name, data[:-1] + bytes([data[-1] ^ 1]), pieces)
        assert not told(stamp.name, data[:3], (1,))
    assert len(kinds) >= 7
    fence = commit_name(stolen.wid, bytes(16))
    assert told(fence, b"", (1,))
    assert not told(session_name(stolen.wid, bytes(16)), b"", (1,))
    with pytest.raises(ValueError, match="no kind"):
        StoredCheck("points/nonsense", 0)
