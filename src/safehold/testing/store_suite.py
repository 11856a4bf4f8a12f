"""What every store must do, as tests: subclass `StoreTests` and give it a fixture named `store`."""

from __future__ import annotations

import threading

import pytest

from safehold.model.clock import SystemClock
from safehold.model.errors import ObjectExists, ObjectNotFound, ShortRead
from safehold.objects.check import check_store
from safehold.ports.store import Store

__all__ = ["StoreTests"]


class StoreTests:
    """The conformance suite. `store` is empty at the start of every test."""

    def test_put_returns_what_head_and_list_say(self, store: Store) -> None:
        """Size by all three; a put's parts are joined."""
        assert store.put("a/b", [b"one", memoryview(b"two"), bytearray(b"three")]).size == 11
        assert store.get("a/b") == b"onetwothree"
        assert store.head("a/b").size == 11
        assert [(s.name, s.size) for s in store.list("")] == [("a/b", 11)]

    def test_store_time_is_the_stores(self, store: Store) -> None:
        """Within an hour of ours, which is as far as a test can know."""
        store.put("x", [b""])
        assert abs(store.head("x").time - SystemClock().now()) < 3600

    def test_create_only_put_keeps_the_first(self, store: Store) -> None:
        """The second creator is told, and the object stays."""
        store.put("x", [b"first"])
        with pytest.raises(ObjectExists):
            store.put("x", [b"second"])
        assert store.get("x") == b"first"

    def test_replacing_put(self, store: Store) -> None:
        """Without create_only the object is replaced as a whole."""
        store.put("x", [b"first and long"])
        store.put("x", [b"second"], create_only=False)
        assert store.get("x") == b"second"

    def test_ranges(self, store: Store) -> None:
        """Exact bytes; one byte past the end is a short read, from a start inside and outside of the object."""
        store.put("x", [bytes(range(256))])
        part = bytearray(16)
        store.read_into("x", 240, memoryview(part))
        assert part == bytes(range(240, 256))
        for offset in (241, 256, 1000):
            with pytest.raises(ShortRead):
                store.read_into("x", offset, memoryview(part))

    def test_missing_objects(self, store: Store) -> None:
        """Reading fails by name, deleting succeeds, listing is empty."""
        for call in (store.get, store.head, lambda name: store.read_into(name, 0, memoryview(bytearray(1)))):
            with pytest.raises(ObjectNotFound) as caught:
                call("no/such")
            assert caught.value.on == "no/such"
        store.delete("no/such")
        assert list(store.list("no/")) == []

    def test_delete(self, store: Store) -> None:
        """Gone at once, and the name is free again."""
        store.put("x", [b"1"])
        store.delete("x")
        assert list(store.list("")) == []
        store.put("x", [b"2"])
        assert store.get("x") == b"2"

    def test_delete_of_a_version(self, store: Store) -> None:
        """Another version than the one that is there is left alone."""
        store.put("x", [b"1"])
        store.delete("x", "no such version")
        assert store.get("x") == b"1"
        store.delete("x", store.head("x").version)
        assert list(store.list("")) == []

    def test_list_order_prefix_and_start(self, store: Store) -> None:
        """Ascending by the bytes of the whole name; prefixes need not end at a segment."""
        names = ["a/b", "a/b-c", "a/b.c", "a/d/c", "a0", "ab/c", "b-c", "b.c/d"]
        for name in reversed(names):
            store.put(name, [b"x"])
        assert [s.name for s in store.list("")] == sorted(names)
        assert [s.name for s in store.list("a/")] == ["a/b", "a/b-c", "a/b.c", "a/d/c"]
        assert [s.name for s in store.list("a")] == [n for n in sorted(names) if n.startswith("a")]
        for after in names:
            assert [s.name for s in store.list("", after)] == [n for n in sorted(names) if n > after]

    def test_names_are_checked(self, store: Store) -> None:
        """Nothing leads out of the store."""
        for name in ("", "/x", "x/", "a//b", "../x", "a/../b", ".hidden", "a/.b", "Ä", "a b", "A"):
            with pytest.raises(ValueError, match="object name"):
                store.put(name, [b"x"])
        assert list(store.list("")) == []

    def test_one_winner_among_many(self, store: Store) -> None:
        """Sixteen threads create the same object."""
        outcomes: list[str] = []
        start = threading.Barrier(16)

        def create(number: int) -> None:
            start.wait()
            try:
                store.put("race", [b"%02d" % number])
                outcomes.append(f"won {number:02d}")
            except ObjectExists:
                outcomes.append("lost")

        threads = [threading.Thread(target=create, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [o for o in outcomes if o != "lost"]
        assert len(outcomes) == 16
        assert winners == [f"won {store.get('race').decode()}"]

    def test_large_objects(self, store: Store) -> None:
        """As large as packs get."""
        data = bytes(range(256)) * (20 * 4096)
        store.put("large", [data])
        assert store.get("large") == data

    def test_its_own_check_agrees(self, store: Store) -> None:
        """What users run on a store says the same."""
        assert [p for p in check_store(store, SystemClock()) if not p.ok] == []
        assert list(store.list("")) == []
