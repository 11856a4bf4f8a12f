"""Verifications while prunes go on, and what they may call bad."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safehold.app.verify import Depth, verify_next, verify_points
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Stamp
from safehold.vault.gc import listed
from safehold.vault.gc.link import add_link
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.report import PruneReport
from safehold.vault.node import Node, encode_node
from safehold.vault.pack import PackRow
from safehold.vault.records import Features, RunPack
from safehold.vault.writers import WriterKey
from tests.faults.test_prune_among_others import BODY, INFO, contents, expire, packs
from tests.faults.test_stolen_writer import Thief
from tests.faults.test_stolen_writer_upkeep import with_root
from tests.worlds import BLOCK, World


class Interrupted(MemoryStore):
    """Calls `between` once, at the end of a listing of metadata packs or before a pack is read."""

    between: Callable[[], object] | None = None
    moment = ""

    def _now(self, moment: str) -> None:
        if self.between is not None and moment == self.moment:
            between, self.between = self.between, None
            between()

    def list(self, prefix: str = "") -> Iterator[Stamp]:
        found = list(super().list(prefix))
        if prefix.startswith("meta"):
            self._now("listed")
        return iter(found)

    def get(self, name: str) -> bytes:
        if name.startswith("packs/"):
            self._now("reading")
        return super().get(name)


def prune(world: World, *, dead: bool = True) -> PruneReport:
    return Prune(world.fresh(), world.root, lambda session, now: dead, world.ctx).run()


@pytest.mark.parametrize("way", ["structure", "rolling"])
def test_what_a_prune_moves_meanwhile_is_not_gone(tmp_path: Path, way: str) -> None:
    store = Interrupted()
    world = World(tmp_path, store)
    world.back_up(contents("a", "b", "c", "d", "e", "f"), "one")
    world.back_up(contents("a"), "two")
    expire(world, "one")
    moved: list[int] = []
    vault = world.open(machine="checks")
    store.moment = "listed" if way == "structure" else "reading"
    store.between = lambda: moved.append(prune(world).moved)
    checks = {
        "structure": lambda: verify_points(vault, None, Depth.STRUCTURE, [], world.ctx),
        "rolling": lambda: verify_next(vault, 0.0, 1 << 40, world.ctx).findings,
    }
    found = checks[way]()
    assert moved[0]
    assert found.found == []
    assert world.fresh().chain.record is not None
    assert world.fresh().chain.record.damaged == ()


@pytest.mark.parametrize("depth", Depth)
def test_a_thief_has_no_sound_pack_called_bad(tmp_path: Path, depth: Depth) -> None:
    """His runs say that what his point needs lies in packs of others, and in some that never were."""
    world = World(tmp_path)
    stolen = WriterKey.load(world.new_writer("mine*").export("somewhere"), on="credential")
    data = os.urandom(20 * BLOCK)
    world.back_up(data, "victim")
    honest = packs(world)
    thief, needed = Thief(world, stolen), os.urandom(32)
    lies = [(name, world.store.head(name).size) for name in sorted(honest)]
    lies += [(f"packs/hot/00/{os.urandom(32).hex()}", 1000) for _ in range(3)]
    for number, (name, size) in enumerate(lies):
        row = PackRow(needed, 10 if depth is Depth.DATA else 1 << 30, 200, 100, 0)
        thief.run(
            RunPack(name, size),
            [row],
            wid=stolen.wid,
            domain=stolen.domain,
            index_key=stolen.index_key,
            number=number + 10,
        )
    with_root(thief, encode_node(Node("disk.leaf", chunks=needed)))
    assert verify_points(world.fresh(), None, depth, [], world.ctx).found
    record = world.fresh().chain.record
    assert record is not None
    assert record.damaged == ()
    assert world.back_up(data, "victim", world.fresh()).new == 0


def test_a_pack_that_was_repaired_is_relied_on_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    data = contents("a", "b", "c")
    world.back_up(data, "one")
    pack = next(iter(world.store.list("packs/"))).name
    sound = world.store.get(pack)
    world.store.put(pack, [sound[:-600] + bytes(500) + sound[-100:]], create_only=False)

    def damaged() -> tuple[str, ...]:
        verify_points(world.fresh(), None, Depth.DATA, [], world.ctx)
        record = world.fresh().chain.record
        assert record is not None
        return record.damaged

    assert damaged() == (pack,)
    world.store.put(pack, [sound], create_only=False)
    assert damaged() == ()


def test_what_this_program_must_not_write_it_does_not_note(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up(contents("a", "b"), "one")
    vault = world.open()
    assert vault.chain.record is not None
    features = Features(write=("future",))
    add_link(world.store, vault.id, vault.owner_key, vault.chain.record, vault.chain.digest, features=features)
    pack = next(iter(world.store.list("packs/"))).name
    world.store.put(pack, [bytes(world.store.head(pack).size)], create_only=False)
    before = {stamp.name for stamp in world.store.list("")}
    assert verify_points(world.fresh(), None, Depth.DATA, [], world.ctx).found
    assert {stamp.name for stamp in world.store.list("")} == before


def test_lost_packs_leave_the_index_while_backups_overlap(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.back_up(contents("a", "b"), "one")
    pack = next(iter(world.store.list("packs/"))).name
    world.store.delete(pack)
    world.back_up(contents("a", "b"), "one", world.fresh())
    with world.open(machine="open").session(INFO, 1) as session:
        prune(world, dead=False)
        vault = world.fresh()
        domains = {one.domain for one in vault.writers.values()}
        named = {name for domain in domains for name in vault.domain(domain)[0].reader_view().pack_names()}
        assert pack not in named
        records = len(list(world.store.list("gc/")))
        prune(world, dead=False)
        assert len(list(world.store.list("gc/"))) == records
        session.commit(BODY)


def test_rubbish_beside_old_records_stops_no_prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.back_up(contents("a"), "one")
    world.store.put("gc/0000000001.bak", [b"rubbish"])
    world.back_up(contents("b"), "one")
    expire(world, "one")
    # Old is what was there before the prune.
    monkeypatch.setattr(listed, "LISTED", -10.0)
    assert prune(world).deleted


def test_tables_of_other_domains_are_left_alone(tmp_path: Path) -> None:
    """One lost chunk has the packs looked into that no run tells of, and those of all other domains are such packs."""
    world = World(tmp_path)
    writer = world.new_writer("mine*")
    for n in range(3):
        world.back_up(os.urandom(20 * BLOCK), f"other{n}")
    world.back_up(os.urandom(9 * BLOCK), "mine", world.open_writer(writer))
    finder = world.fresh().finder(writer.wid)
    assert finder.locations(os.urandom(32)) == []
    assert finder._recovered == {}
