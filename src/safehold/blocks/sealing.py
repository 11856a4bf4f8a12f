"""Volumes sealed at one instant, with a snapshot on record in all of them or in none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import msgspec

from safehold.blocks.epochs import seal_together
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot

__all__ = ["seal_volumes"]


def seal_volumes(
    volumes: Sequence[HeldVolume], describe: Callable[[HeldVolume, tuple[float, float]], Snapshot]
) -> list[Snapshot]:
    """Seal volumes that nobody else seals or puts away meanwhile; `describe` makes each one's snapshot from when the gate was closed. OSError
    where that cannot be put on record: there is no snapshot then.
    """
    for held in volumes:
        # One of an earlier call that could not take it back.
        if not held.volume.read_only:
            held.end_nobodys()
    prepared = [held.epochs.prepare() for held in volumes]
    reasons = [held.record.suspect for held in volumes]
    for held, reason in zip(volumes, reasons, strict=True):
        if reason:
            held.epochs.suspect()
    taken = seal_together([held.epochs for held in volumes], prepared)
    snapshots: list[Snapshot] = []
    try:
        for held, reason in zip(volumes, reasons, strict=True):
            snapshot = msgspec.structs.replace(describe(held, taken), full=bool(reason))
            held.put_on_record(snapshot, reason)
            snapshots.append(snapshot)
    except BaseException:
        for held, snapshot in zip(volumes, snapshots, strict=False):
            with contextlib.suppress(OSError):
                held.fail_snapshot(snapshot, "it could not be put on record for all volumes", compare=False)
        for held, ready in list(zip(volumes, prepared, strict=True))[len(snapshots) :]:
            with contextlib.suppress(OSError):
                held.epochs.pass_on(ready.epoch - 1)
                held.epochs.drop(ready.epoch - 1)
        raise
    return snapshots
