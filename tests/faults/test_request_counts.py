"""What a backup asks of the store, counted at the seam: what was stored before costs a backup no requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import Buffer

from safehold.objects.memory import MemoryStore
from safehold.ports.store import Capabilities, Stamp
from tests.worlds import BLOCK, World

PAGE = 1000
"""Names in one answer to a listing, as S3 has it."""


class CountingStore:
    """Counts the requests that a store like S3 would get: a listing is one for each thousand names."""

    def __init__(self) -> None:
        self._inner = MemoryStore()
        self.url, self.calls = "counting://", Counter[str]()

    @property
    def caps(self) -> Capabilities:
        return self._inner.caps

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        self.calls["put"] += 1
        return self._inner.put(name, parts, create_only=create_only)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        self.calls["read"] += 1
        self._inner.read_into(name, offset, buf)

    def get(self, name: str) -> bytes:
        self.calls["get " + name.split("/")[0]] += 1
        return self._inner.get(name)

    def head(self, name: str) -> Stamp:
        self.calls["head"] += 1
        return self._inner.head(name)

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        self.calls["list"] += 1
        for number, stamp in enumerate(self._inner.list(prefix, after), 1):
            if number % PAGE == 0:
                self.calls["list"] += 1
            yield stamp

    def delete(self, name: str, version: str | None = None) -> None:
        self.calls["delete"] += 1
        self._inner.delete(name, version)


def counted(world: World, data: bytes, store: CountingStore, machine: str = "home") -> Counter[str]:
    """The requests of one more backup."""
    store.calls.clear()
    world.back_up(data, vault=world.open(machine=machine))
    return Counter(store.calls)


def of(root: Path, blocks: int, earlier: int = 0) -> tuple[World, CountingStore, bytes]:
    """A vault with a disk of so many different blocks, and so many points with a change each before it."""
    store = CountingStore()
    world = World(root, store)
    data = random.Random(blocks).randbytes(blocks * BLOCK)
    for change in range(earlier):
        world.back_up(change.to_bytes(8, "big") + data[8:])
    world.back_up(data)
    # The first one after it takes in the index run of the last.
    world.back_up(data)
    return world, store, data


def test_a_backup_without_changes_costs_as_much_whatever_the_vault_holds(tmp_path: Path) -> None:
    small, few, data = of(tmp_path / "small", 16)
    large, many, more = of(tmp_path / "large", 2048)
    assert len(list(many.list("packs/"))) > 20 * len(list(few.list("packs/")))
    again = counted(small, data, few)
    assert counted(large, more, many) == again
    # A difference would be noticed: a disk with changes costs more, and more of them cost more still.
    other = random.Random(3).randbytes(len(more) // 2) + more[len(more) // 2 :]
    assert counted(large, other, many)["put"] > again["put"] + 20


def test_earlier_points_cost_a_machine_one_request_for_each_run_it_does_not_know(tmp_path: Path) -> None:
    world, few, data = of(tmp_path / "few", 64, 3)
    other, many, same = of(tmp_path / "many", 64, 30)
    assert counted(world, data, few) == counted(other, same, many)
    for one, store in ((world, few), (other, many)):
        runs = len(list(store.list("index/")))
        vault = one.open(machine="new")
        store.calls.clear()
        vault.domain(vault.writer().domain)[0].reader_view()
        assert store.calls["get index"] == runs
