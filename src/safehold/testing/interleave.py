"""A store at a chosen call of which something else happens first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from safehold.ports.store import Capabilities, Stamp, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["InterleavedStore"]


class InterleavedStore:
    """Passes calls on; before the `at`-th of them `happens` is called, in the thread that makes the call. Whoever uses this store stands still
    meanwhile.
    """

    def __init__(self, inner: Store, at: int, happens: Callable[[], None]) -> None:
        self._inner, self._at, self._happens = inner, at, happens
        self._calls = 0
        self._lock = threading.RLock()
        self.url = inner.url

    @property
    def caps(self) -> Capabilities:
        """The inner store's."""
        return self._inner.caps

    def _count(self) -> None:
        # One lock: other threads of the same user stand still too.
        with self._lock:
            self._calls += 1
            if self._calls == self._at:
                self._happens()

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`."""
        self._count()
        return self._inner.put(name, parts, create_only=create_only)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        self._count()
        self._inner.read_into(name, offset, buf)

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        self._count()
        return self._inner.get(name)

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        self._count()
        return self._inner.head(name)

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`."""
        self._count()
        return self._inner.list(prefix, after)

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        self._count()
        self._inner.delete(name, version)
