"""A store around a store that bounds the bytes being uploaded at any moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from safehold.ports.store import Capabilities, Stamp, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ByteSemaphore", "LimitStore"]


class ByteSemaphore:
    """Lets through at most `budget` bytes at once, first come, first served. A request beyond the whole budget goes
    alone.
    """

    def __init__(self, budget: int) -> None:
        self._budget = self._left = budget
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def acquire(self, amount: int) -> int:
        """Wait for room; returns what to give back to `release`."""
        amount = min(amount, self._budget)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            while self._queue[0] is not ticket or self._left < amount:
                self._changed.wait()
            self._queue.popleft()
            self._left -= amount
            self._changed.notify_all()
        return amount

    def release(self, amount: int) -> None:
        """Give room back."""
        with self._changed:
            self._left += amount
            self._changed.notify_all()


class LimitStore:
    """Holds every put until the semaphore has room for it; reads go straight through, as they fill buffers that
    callers bound.
    """

    def __init__(self, inner: Store, semaphore: ByteSemaphore) -> None:
        self._inner, self._semaphore = inner, semaphore

    @property
    def url(self) -> str:
        """The inner store's."""
        return self._inner.url

    @property
    def caps(self) -> Capabilities:
        """The inner store's."""
        return self._inner.caps

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`."""
        held = self._semaphore.acquire(sum(memoryview(part).nbytes for part in parts))
        try:
            return self._inner.put(name, parts, create_only=create_only)
        finally:
            self._semaphore.release(held)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        self._inner.read_into(name, offset, buf)

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        return self._inner.get(name)

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        return self._inner.head(name)

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`."""
        return self._inner.list(prefix, after)

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        self._inner.delete(name, version)
