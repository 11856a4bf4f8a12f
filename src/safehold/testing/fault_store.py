"""A store around a store that fails when told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safehold.model.errors import StoreUnavailable
from safehold.ports.store import Capabilities, Stamp, Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Fault", "FaultStore", "Killed"]


class Killed(BaseException):
    """Stands for the death of the process: nothing catches it."""


@dataclass
class Fault:
    """Strikes the calls of `verb` on names starting with `prefix`, from the `nth` matching one on, `times` times.

    `lost` performs the call and loses its answer; otherwise the call is not performed. `error` makes what is raised.
    """

    verb: str
    prefix: str = ""
    nth: int = 1
    times: int = 1
    lost: bool = False
    error: Callable[[], BaseException] = lambda: StoreUnavailable("injected fault")
    seen: int = 0
    hits: int = 0

    def strikes(self, verb: str, name: str) -> bool:
        """Count the call; true where it is to fail."""
        if verb != self.verb or not name.startswith(self.prefix):
            return False
        self.seen += 1
        if self.seen < self.nth or self.hits >= self.times:
            return False
        self.hits += 1
        return True


@dataclass
class FaultStore:
    """Passes calls on, unless a fault strikes. `log` keeps (verb, name) of every call."""

    inner: Store
    faults: list[Fault] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The inner store's."""
        return self.inner.url

    @property
    def caps(self) -> Capabilities:
        """The inner store's."""
        return self.inner.caps

    def fail(self, verb: str, prefix: str = "", **how: object) -> Fault:
        """Add a fault; returns it, so that a test can see how often it struck."""
        fault = Fault(verb, prefix, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def _before(self, verb: str, name: str) -> Fault | None:
        self.log.append((verb, name))
        for fault in self.faults:
            if fault.strikes(verb, name):
                if not fault.lost:
                    raise fault.error()
                return fault
        return None

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`."""
        lost = self._before("put", name)
        stamp = self.inner.put(name, parts, create_only=create_only)
        if lost:
            raise lost.error()
        return stamp

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        self._before("read", name)
        self.inner.read_into(name, offset, buf)

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        self._before("get", name)
        return self.inner.get(name)

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        self._before("head", name)
        return self.inner.head(name)

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`."""
        self._before("list", prefix)
        yield from self.inner.list(prefix, after)

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        lost = self._before("delete", name)
        self.inner.delete(name, version)
        if lost:
            raise lost.error()
