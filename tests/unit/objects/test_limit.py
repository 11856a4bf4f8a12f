"""The bytes under way to stores are bounded for the whole process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from safehold.compose import wiring
from safehold.model.clock import SystemClock
from safehold.objects.limit import ByteSemaphore, LimitStore
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Stamp

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Slow(MemoryStore):
    """Puts stay under way until they are let go; all of its kind that share `gate` are counted together."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        size = sum(memoryview(part).nbytes for part in parts)
        self.gate.enter(size)
        try:
            return super().put(name, parts, create_only=create_only)
        finally:
            self.gate.leave(size)


class Gate:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.inside: list[int] = []
        self.most = self.passed = 0
        self.open = False

    def enter(self, size: int) -> None:
        with self.changed:
            self.inside.append(size)
            self.most = max(self.most, sum(self.inside))
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.open, 60)

    def leave(self, size: int) -> None:
        with self.changed:
            self.inside.remove(size)
            self.passed += 1
            self.changed.notify_all()

    def await_inside(self, sizes: list[int]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: sorted(self.inside) == sorted(sizes), 60), self.inside

    def let_all_go(self) -> None:
        with self.changed:
            self.open = True
            self.changed.notify_all()


def puts(stores: Sequence[LimitStore], sizes: Sequence[int]) -> list[threading.Thread]:
    """One thread for each put, begun in order; the stores take turns."""
    threads = []
    for number, size in enumerate(sizes):
        store = stores[number % len(stores)]
        threads.append(threading.Thread(target=store.put, args=(f"n{number}", [bytes(size)]), daemon=True))
        threads[-1].start()
    return threads


def await_waiting(semaphore: ByteSemaphore, count: int) -> None:
    """Until so many puts wait for room: whoever could have gone through has done so by then."""
    deadline = time.monotonic() + 60
    while len(semaphore._queue) != count:
        assert time.monotonic() < deadline, len(semaphore._queue)
        time.sleep(0.005)


def test_no_more_than_the_budget_is_under_way_over_several_stores() -> None:
    gate = Gate()
    semaphore = ByteSemaphore(100)
    stores = [LimitStore(Slow(gate), semaphore) for _ in range(2)]
    threads = puts(stores, [30] * 10)
    await_waiting(semaphore, 7)
    gate.await_inside([30, 30, 30])
    gate.let_all_go()
    for thread in threads:
        thread.join(60)
    assert gate.passed == 10
    assert gate.most <= 90


def test_without_the_limit_the_test_would_see_it() -> None:
    gate = Gate()
    stores = [LimitStore(Slow(gate), ByteSemaphore(100)) for _ in range(2)]
    threads = puts(stores, [30] * 10)
    gate.await_inside([30] * 6)
    gate.let_all_go()
    for thread in threads:
        thread.join(60)
    assert gate.most > 100


def test_what_is_larger_than_the_budget_goes_alone() -> None:
    gate = Gate()
    semaphore = ByteSemaphore(100)
    store = LimitStore(Slow(gate), semaphore)
    first = puts([store], [250])
    gate.await_inside([250])
    second = threading.Thread(target=store.put, args=("small", [b"x"]), daemon=True)
    second.start()
    await_waiting(semaphore, 1)
    gate.let_all_go()
    for thread in [*first, second]:
        thread.join(60)
    assert gate.passed == 2
    assert gate.most == 250


def test_a_put_that_fails_gives_its_room_back() -> None:
    class Failing(MemoryStore):
        def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
            raise OSError

    semaphore = ByteSemaphore(100)
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011
            LimitStore(Failing(), semaphore).put("n", [bytes(80)])
    assert semaphore.acquire(100) == 100


def test_all_vaults_of_a_process_share_one_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    opened: Callable[[str], Slow] = lambda url: Slow(gate)  # noqa: E731
    monkeypatch.setattr(wiring, "open_store", opened)
    semaphore = ByteSemaphore(100)
    monkeypatch.setattr(wiring, "_UPLOADS", semaphore)
    with ExitStack() as stack:
        stack.callback(gate.let_all_go)
        vaults = [wiring.open_stores(str(tmp_path / name), SystemClock()) for name in "ab"]
        threads = puts([vault.direct for vault in vaults], [60, 60])  # type: ignore[misc]
        await_waiting(semaphore, 1)
        gate.await_inside([60])
    for thread in threads:
        thread.join(60)
    assert gate.most == 60
    assert gate.passed == 2
