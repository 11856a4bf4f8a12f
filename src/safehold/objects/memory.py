"""A store in this process's memory, for tests and for trying things out."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from safehold.model.clock import Clock, SystemClock
from safehold.model.errors import ObjectExists, ObjectNotFound, ShortRead
from safehold.objects.names import check_name
from safehold.ports.store import Capabilities, Stamp

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MemoryStore"]


class MemoryStore:
    """Objects in a dict; linearizable, as one lock guards it."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._objects: dict[str, tuple[bytes, Stamp]] = {}
        self._names: list[str] = []
        self._lock = threading.Lock()
        self._versions = itertools.count(1)
        self.url = "memory://"
        self.caps = Capabilities(parallel=2)

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`."""
        check_name(name)
        data = b"".join(bytes(part) for part in parts)
        with self._lock:
            if name in self._objects and create_only:
                raise ObjectExists("object exists already", on=name)
            if name not in self._objects:
                bisect.insort(self._names, name)
            stamp = Stamp(name, len(data), str(next(self._versions)), self._clock.now())
            self._objects[name] = (data, stamp)
            return stamp

    def _find(self, name: str) -> tuple[bytes, Stamp]:
        with self._lock:
            found = self._objects.get(name)
        if found is None:
            raise ObjectNotFound("no such object", on=name)
        return found

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        data = self._find(name)[0]
        if offset + len(buf) > len(data):
            raise ShortRead(f"object ends at {len(data)}, before {offset + len(buf)}", on=name)
        buf[:] = data[offset : offset + len(buf)]

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        return self._find(name)[0]

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        return self._find(name)[1]

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`."""
        with self._lock:
            start = max(bisect.bisect_left(self._names, prefix), bisect.bisect_right(self._names, after))
            names = list(itertools.takewhile(lambda n: n.startswith(prefix), self._names[start:]))
            stamps = [self._objects[name][1] for name in names]
        yield from stamps

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        with self._lock:
            found = self._objects.get(name)
            if found is not None and version in (None, found[1].version):
                del self._objects[name]
                self._names.remove(name)
