"""The seam to a kind of resource that can be read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.ports.blocks import Blocks
from safehold.ports.tree import ByteStream, Tree

__all__ = ["Capture", "Interval", "Source"]


@dataclass(frozen=True, slots=True)
class Interval:
    """From when to when the resource was held still, seconds since 1970 by this machine's clock."""

    start: float
    end: float


class Capture(Protocol):
    """A resource held still at one point in time; valid inside its with-block."""

    @property
    def resource(self) -> ResourceRef:
        """What was captured."""
        ...

    @property
    def taken(self) -> Interval:
        """From when to when it was held still."""
        ...

    @property
    def topology(self) -> Topology | None:
        """What lies on it, where that is known."""
        ...

    @property
    def content(self) -> Blocks | Tree | ByteStream:
        """Its bytes or files."""
        ...

    @property
    def achieved(self) -> Consistency:
        """How still it was held; only final when asked after the last read, for it can drop when somebody writes
        meanwhile.
        """
        ...

    def committed(self) -> None:
        """The point was committed: the source may remember what it will want to know the next time."""
        ...


class Source(Protocol):
    """Reads one kind of resource. Other packages bring theirs as entry points of the group `safehold.sources`; see `compose.plugins`."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """The resource that `spec` names, or None where it is for another source. A `kind:` prefix forces the kind.

        UsageError where the prefix is ours and the rest makes no sense.
        """
        ...

    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> AbstractContextManager[Capture]:
        """Hold the resource still, at least as still as `require`.

        ConsistencyError where that cannot be reached, SourceError where it cannot be read.
        """
        ...
