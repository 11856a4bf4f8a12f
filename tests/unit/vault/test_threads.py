"""What two threads at once may do, and what is refused."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from safehold.vault.disk_builder import DiskTreeBuilder
from safehold.vault.names import Kind
from safehold.vault.node import Node
from safehold.vault.records import SessionInfo
from tests.worlds import World


def test_pages_are_stored_one_at_a_time() -> None:
    """Pages fill up in several threads; the node store is no place for two of them."""
    inside = threading.Lock()
    clashes = []

    def put(node: Node) -> bytes:
        if not inside.acquire(blocking=False):
            clashes.append(node)
            return bytes([1]) * 32
        time.sleep(0.0005)
        inside.release()
        return bytes([1]) * 32

    builder = DiskTreeBuilder(400, 4, put)

    def fill(first: int) -> None:
        for page in range(first, 100, 2):
            builder.set(page * 4, [bytes([2]) * 32] * 4)

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    builder.finish()
    assert not clashes


def test_a_lane_refuses_a_second_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = World(tmp_path).open()
    with vault.session(SessionInfo("host", "boot", 1, 1, "test", 0.0, "run"), 2) as session:
        lane = session.lane()
        second: list[BaseException] = []

        def meanwhile(plain: int) -> None:
            def put() -> None:
                try:
                    lane.put(Kind.PACK, [memoryview(b"second" * 100)])
                except RuntimeError as error:
                    second.append(error)

            thread = threading.Thread(target=put)
            thread.start()
            thread.join()

        take = session.take_pack
        monkeypatch.setattr(session, "take_pack", lambda kind, plain: (meanwhile(plain), take(kind, plain))[1])
        lane.put(Kind.PACK, [memoryview(b"first" * 100)])
        assert len(second) == 1
