"""Disks that a hostile writer made of a few pages, each of which stands in all places of the one above: no check walks them for ever."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest

from safehold.recovery.verify import verify_structure
from safehold.vault.disk_tree import DiskTree
from safehold.vault.gc.mark import IdSorter, walk
from safehold.vault.names import Kind, commit_name
from safehold.vault.node import Node, encode_node
from safehold.vault.records import Member
from safehold.vault.sealing import chunk_id
from tests.faults.test_stolen_writer import Thief
from tests.worlds import BLOCK, World


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pages that were asked for."""
    asked: list[bytes] = []
    whole = DiskTree.page

    def page(self: DiskTree, identity: bytes, level: int, number: int) -> bytes:
        asked.append(identity)
        return whole(self, identity, level, number)

    monkeypatch.setattr(DiskTree, "page", page)
    return asked


def endless(world: World, levels: int, refs: int) -> str:
    """A point of a stolen writer: one page on each level, in all places of the one above."""
    writer = world.new_writer("mine*")
    thief = Thief(world, writer)
    thief.announce()
    block = os.urandom(BLOCK)
    data, rows = thief.pack([(chunk_id(writer.dedup_key, block), block)])
    thief.run(data, rows, wid=writer.wid, domain=writer.domain, index_key=writer.index_key)
    pages, at = [], chunk_id(writer.dedup_key, block)
    for level in range(levels):
        node = encode_node(Node("disk.inner", nodes=at * refs) if level else Node("disk.leaf", chunks=at * refs))
        at = chunk_id(writer.dedup_key, node)
        pages.append((at, node))
    meta, rows = thief.pack(pages, Kind.META)
    thief.run(meta, rows, wid=writer.wid, domain=writer.domain, index_key=writer.index_key, number=1)
    member = Member("volume", "mine", at, levels, refs**levels * BLOCK, BLOCK, refs, "crash", "crash", (0.0, 0.0))
    name = commit_name(writer.wid, thief.sid)
    thief.point(name, "mine", at, members=(member, msgspec.structs.replace(member, name="mine too")))
    return name


def test_verifying_an_endless_disk_takes_as_long_as_it_has_pages(tmp_path: Path, loads: list[bytes]) -> None:
    world = World(tmp_path)
    name = endless(world, 4, 64)
    vault = world.fresh()
    for _ in range(2):
        found = verify_structure(vault, [p for p in vault.points()[0] if p.name == name], world.ctx)
        assert found.found == []
        assert found.logical == 2 * 64**4 * BLOCK
    assert len(loads) == 2 * 4
    with IdSorter(tmp_path) as live:
        walk(vault.points()[0], vault.chunks, live, world.ctx)
        assert len(list(live)) == 5


def test_one_bad_block_everywhere_is_told_within_reason(tmp_path: Path, loads: list[bytes]) -> None:
    world = World(tmp_path)
    name = endless(world, 4, 64)
    world.store.delete(next(s.name for s in world.store.list("packs/")))
    vault = world.fresh()
    found = verify_structure(vault, [p for p in vault.points()[0] if p.name == name], world.ctx)
    assert {finding.on for finding in found.found} == {"mine", "mine too"}
    assert all("at least" in finding.what for finding in found.found)
    assert len(loads) < 5000


def test_pages_that_never_were_are_not_looked_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    writer = world.new_writer("mine*")
    thief = Thief(world, writer)
    thief.announce()
    refs = 4096
    node = encode_node(Node("disk.inner", nodes=random.Random(1).randbytes(32 * refs)))
    root = chunk_id(writer.dedup_key, node)
    meta, rows = thief.pack([(root, node)], Kind.META)
    thief.run(meta, rows, wid=writer.wid, domain=writer.domain, index_key=writer.index_key)
    member = Member("volume", "mine", root, 2, refs**2 * BLOCK, BLOCK, refs, "crash", "crash", (0.0, 0.0))
    thief.point(commit_name(writer.wid, thief.sid), "mine", root, members=(member,))
    vault = world.fresh()
    asked = []
    one = vault.fetcher.one
    monkeypatch.setattr(vault.fetcher, "one", lambda *args: asked.append(args) or one(*args))
    found = verify_structure(vault, vault.points()[0], world.ctx).found
    assert found[0].what.startswith("more than 1000 metadata chunks")
    assert all("at least" in finding.what for finding in found[1:])
    assert len(asked) < 2100
