"""Has snapshots survive a power loss as soon as they are taken, whatever is on its way to the vault, and ends those that nobody vouches for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.epochs import PutAway
from safehold.blocks.held import HeldVolume
from safehold.model.background import BackgroundLoop
from safehold.model.context import Context

__all__ = ["Settler", "discard"]

_VOUCHING = 120.0
"""Seconds in which somebody has to vouch for a snapshot: letting go of brackets takes less."""

_MARGIN = 0.1
"""Seconds behind the end of a time, so that it has ended."""

_AGAIN = 5.0
"""Seconds until it is tried again, where something is in the way."""


def discard(volumes: Sequence[HeldVolume], identity: str, why: str) -> None:
    """A pending snapshot has failed in every volume that has it, unless somebody has vouched for it: then it may be on its way."""
    for held in volumes:
        for snapshot in held.record.pending:
            if snapshot.id == identity:
                held.discard_snapshot(snapshot, why)


class Settler(BackgroundLoop):
    """`problems` says of which volumes a snapshot does not survive a power loss yet, and why."""

    def __init__(self, directory: VolumeDirectory, ended: Callable[[], None], ctx: Context) -> None:
        """`ended` is called when a snapshot has ended that others may have waited behind."""
        super().__init__("settling")
        self._directory, self._ended, self._ctx = directory, ended, ctx
        self.problems: dict[str, str] = {}

    def failed(self, error: Exception) -> float:
        """See `BackgroundLoop`."""
        self._ctx.progress.warn(f"snapshots do not survive a power loss yet: {error}")
        return _AGAIN

    def turn(self) -> float:
        """See `BackgroundLoop`."""
        volumes = self._directory.all()
        found: dict[str, str] = {}
        soonest = _VOUCHING
        for held in volumes:
            try:
                soonest = min(soonest, self._one(held, volumes))
            except PutAway:
                pass
            except OSError as error:
                found[held.name] = f"its snapshot does not survive a power loss: {error.strerror}"
            except Exception as error:  # one volume's trouble is not another's
                found[held.name] = f"its snapshot does not survive a power loss: {error}"
        self.problems = found
        return min(_AGAIN, soonest) if found else soonest

    def _one(self, held: HeldVolume, volumes: Sequence[HeldVolume]) -> float:
        soonest = _VOUCHING
        for snapshot in held.record.pending:
            if not snapshot.durable and not self.stopped:
                held.settle(snapshot)
            left = snapshot.taken[1] + _VOUCHING - self._ctx.clock.now()
            if snapshot.vouched:
                continue
            if left < 0:
                discard(volumes, snapshot.id, "whoever took it died before saying how still it was held")
                self._ended()
            else:
                soonest = min(soonest, left + _MARGIN)
        return soonest
