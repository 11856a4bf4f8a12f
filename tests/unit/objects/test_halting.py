"""Whoever tries a store again and again gives up when its process is to end."""

import threading

import pytest

from safehold.model.clock import SystemClock
from safehold.model.context import CancelToken
from safehold.model.errors import CancelledError, StoreUnavailable
from safehold.model.halting import HaltingClock
from safehold.objects.memory import MemoryStore
from safehold.objects.retry import RetryPolicy, RetryStore


def test_a_wait_for_a_store_ends_with_the_halt() -> None:
    asked = threading.Event()

    class Down(MemoryStore):
        def get(self, name: str) -> bytes:
            asked.set()
            raise StoreUnavailable("the store is down")

    halt = CancelToken()
    store = RetryStore(Down(), HaltingClock(SystemClock(), halt), RetryPolicy(10**9, 3600.0, 7200.0))
    ended: list[Exception] = []

    def ask() -> None:
        with pytest.raises(CancelledError) as raised:
            store.get("config")
        ended.append(raised.value)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert asked.wait(20)
    halt.cancel()
    thread.join(20)
    assert len(ended) == 1
