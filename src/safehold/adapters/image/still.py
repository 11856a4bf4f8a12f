"""A disk as it was at one instant, whatever is written to it meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from safehold.adapters.image.topology import cleanly_unmounted, detect
from safehold.model.consistency import Consistency
from safehold.model.errors import ConsistencyError
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.ports.blocks import Blocks
from safehold.ports.source import Interval

__all__ = ["StillCapture", "still_capture"]


class StillCapture:
    """See `ports.source.Capture`."""

    def __init__(
        self,
        resource: ResourceRef,
        content: Blocks,
        topology: Topology,
        still: Consistency,
        taken: Interval,
        check: Callable[[], None],
    ) -> None:
        """`check` raises ConsistencyError where the instant was lost."""
        self.resource = resource
        self.content = content
        self.topology: Topology | None = topology
        self.taken = taken
        self._still = still
        self._check = check

    @property
    def achieved(self) -> Consistency:
        """What it is at every moment of the copy. ConsistencyError where it is not any more."""
        self._check()
        return self._still

    def committed(self) -> None:
        """Nothing is remembered."""


def still_capture(
    ref: ResourceRef,
    blocks: Blocks,
    form: str,
    taken: Interval,
    require: Consistency,
    check: Callable[[], None] = lambda: None,
) -> StillCapture:
    """A capture whose level is told from what lies on it. `form` is what the topology calls it, `check` as for `StillCapture`.
    ConsistencyError where the level is less than `require`.
    """
    still = Consistency.FILESYSTEM if cleanly_unmounted(blocks) else Consistency.CRASH
    if still < require:
        raise ConsistencyError(
            f"a capture of {ref.name} is only {still.label}-consistent, {require.label} was asked for",
            on=ref.location,
            remedy="make it quiet with --bracket, or ask for less",
        )
    return StillCapture(ref, blocks, detect(blocks, form), still, taken, check)
