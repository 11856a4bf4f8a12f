"""Standard input as a source of backups."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from safehold.model.clock import Clock
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, SourceError, UsageError
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.ports.source import Interval
from safehold.ports.tree import ByteStream

__all__ = ["KIND", "StreamCapture", "StreamSource", "demand_nothing"]

KIND = "stream"


@dataclass(frozen=True)
class StreamSource:
    """What another program writes into a pipe, read from the descriptor `fd`."""

    fd: int = 0

    def resolve(self, spec: str) -> ResourceRef | None:
        """`-`. See `ports.source.Source`."""
        if spec != "-":
            return None
        if os.isatty(self.fd):
            raise UsageError(
                "standard input is a terminal",
                on="-",
                remedy="pipe something into it, or have it started: safehold backup 'command:pg_dump db' --name db",
            )
        return ResourceRef(KIND, "-", "standard input")

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[StreamCapture]:
        """See `ports.source.Source`. How still the sender held what it sends cannot be known."""
        demand_nothing(ref, require)
        yield StreamCapture(ref, _Stream(self.fd), ctx.clock)


def demand_nothing(ref: ResourceRef, require: Consistency) -> None:
    """ConsistencyError where anything is required of a stream."""
    if require > Consistency.NONE:
        raise ConsistencyError(
            f"what comes through a pipe cannot prove that it is {require.label}-consistent",
            on=ref.name,
            remedy="leave --require out",
        )


class _Stream:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._any = False

    def read_some(self, buf: memoryview) -> int:
        try:
            got = os.readv(self._fd, [buf])
        except OSError as error:
            raise SourceError(f"standard input cannot be read ({error.strerror})", on="-") from error
        if not got and not self._any:
            raise SourceError(
                "standard input was empty", on="-", remedy="look why the program before the pipe wrote nothing"
            )
        self._any = True
        return got


class StreamCapture:
    """See `ports.source.Capture`."""

    def __init__(self, ref: ResourceRef, content: ByteStream, clock: Clock) -> None:
        self.resource = ref
        self.content = content
        self.topology: Topology | None = None
        self.achieved = Consistency.NONE
        self._clock = clock
        self._start = clock.now()

    def committed(self) -> None:
        """Nothing is remembered."""

    @property
    def taken(self) -> Interval:
        """From the first byte until now."""
        return Interval(self._start, self._clock.now())
