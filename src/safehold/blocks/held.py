"""One open volume with its record: snapshots become points or fail, and the record says so before anybody counts on it."""

from __future__ import annotations

import contextlib
import errno
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from safehold.blocks.epochs import Epochs
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import PRESENT
from safehold.blocks.layout import (
    Attempt,
    Lineage,
    Snapshot,
    SnapshotState,
    VolumeFiles,
    VolumeRecord,
    read_record,
    write_record,
)
from safehold.blocks.opening import open_volume
from safehold.blocks.volume import LiveVolume
from safehold.model.errors import FailedError
from safehold.model.quiet import Quieted

__all__ = ["HeldVolume"]

_GONE = "which blocks it changed is not known any more (the machine went down before that was on its disk, or the file is damaged); take another"
_RESTED = "it rests on the snapshot before it, which is lost; take another"
_NOT_WRITTEN = "the disk below failed to write before the snapshot was on it"
_MOVED = "the disk below failed to write, and may not have what was moved or filled in since the snapshot was taken"
_KEPT_SNAPSHOTS = 100
"""Finished snapshots that a record remembers; the vault has their points."""


def _report(held: HeldVolume | None, problem: str) -> None:
    if held is not None:
        held.told(problem)


def _named(name: str, log: Callable[[str], None]) -> Callable[[str], None]:
    """Without the volume itself: in a circle nothing is closed before the garbage collector comes along."""
    return lambda text: log(f"volume {name}: {text}")


def _kept(snapshots: tuple[Snapshot, ...]) -> tuple[Snapshot, ...]:
    """Without the oldest of very many that are finished."""
    done = [one for one in snapshots if one.state is not SnapshotState.PENDING][:-_KEPT_SNAPSHOTS]
    return tuple(one for one in snapshots if one not in done)


@contextlib.contextmanager
def _as_far_as_there_is_room() -> Iterator[None]:
    """For what can be done later, or be done without: a volume that nobody could open, because its disk is full, would be worse."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


class HeldVolume:
    """One open volume, its record, and who uses it."""

    def __init__(self, directory: Path, boot: str, log: Callable[[str], None] = lambda text: None) -> None:
        """`log` is told what an operator should know when it comes about. FailedError where it cannot be opened."""
        self.files = VolumeFiles(directory)
        self.record = read_record(self.files)
        self._told = ""
        self._log = log
        self.clients = 0
        self._changing = threading.Lock()
        # Not bound to this object: in a circle nothing is closed before the garbage collector comes along.
        mine = weakref.ref(self)
        opened = open_volume(directory, self.record, boot, lambda problem: _report(mine(), problem))
        self.volume: LiveVolume = opened.volume
        self.volume.troubles.log = _named(self.name, log)
        self.epochs: Epochs = opened.epochs
        self.ids = BlockIds(self.files)
        # What was collected for a point that may have come to be is needed once that is known.
        if self.record.lineage and not any(
            one.attempt and self.ids.kept(one.attempt.point) for one in self.record.pending
        ):
            with _as_far_as_there_is_room():
                self.ids.adopt(self.record.lineage.point)
        if self.volume.read_only:
            self.told(self.record.failed or opened.suspect)
        elif opened.suspect:
            # What it says is in the maps, too.
            self.told(opened.suspect)
            with _as_far_as_there_is_room():
                self.update(suspect=opened.suspect)
                self.told("")
        self._reconcile()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.record.name

    @property
    def problem(self) -> str:
        """What an operator should know, or nothing. That everything is to be compared is no news before there is a point to compare with."""
        told = self._told or (self.record.suspect if self.record.lineage else "")
        return "; ".join(filter(None, (told, self.volume.troubles.text)))

    def told(self, problem: str) -> None:
        """The volume says what an operator should know. That its disk failed it is on record, and stands before all else."""
        self._told = self.record.failed or problem
        if self.volume.read_only and not self.record.failed:
            self._log(f"volume {self.name}: {problem}")
            # Such a disk may not take this either; `live.map` says it too.
            with contextlib.suppress(OSError):
                self.update(failed=problem, suspect=problem)

    def update(self, **changes: object) -> None:
        """Change the record, durably. OSError, and nothing has changed then."""
        with self._changing:
            self._replace(msgspec.structs.replace(self.record, **changes))

    def _replace(self, record: VolumeRecord) -> None:
        write_record(self.files, record)
        self.record = record

    def put_on_record(self, snapshot: Snapshot, compared: str) -> None:
        """There is one more snapshot; `compared` is the reason for which everything counts as changed in it, or nothing. OSError."""
        with self._changing:
            # Snapshots end in other threads meanwhile, and one that has just failed has a reason of its own for the next to compare.
            suspect = "" if self.record.suspect == compared else self.record.suspect
            snapshots = (*self.record.snapshots, snapshot)
            self._replace(msgspec.structs.replace(self.record, suspect=suspect, snapshots=snapshots))

    def change_snapshot(self, identity: str, lineage: Lineage | None = None, **changes: object) -> Snapshot:
        """Change what the record says of one snapshot, and of the lineage where there is another, durably; returns the snapshot."""
        with self._changing:
            return self._change_snapshot(identity, lineage, changes)

    def vouch(self, identity: str, achieved: str, quiet: tuple[Quieted, ...]) -> Snapshot:
        """Somebody says how still a snapshot was held; returns it. One that is not pending stays as it is."""
        with self._changing:
            snapshot = next(one for one in self.record.snapshots if one.id == identity)
            if snapshot.state is not SnapshotState.PENDING:
                return snapshot
            return self._change_snapshot(identity, None, {"vouched": True, "achieved": achieved, "quiet": quiet})

    def _change_snapshot(self, identity: str, lineage: Lineage | None, changes: dict[str, object]) -> Snapshot:
        all_of_them = tuple(
            msgspec.structs.replace(one, **changes) if one.id == identity else one for one in self.record.snapshots
        )
        lineage = lineage or self.record.lineage
        self._replace(msgspec.structs.replace(self.record, snapshots=_kept(all_of_them), lineage=lineage))
        return next(one for one in all_of_them if one.id == identity)

    def _reconcile(self) -> None:
        """Bring snapshots and epochs together after whatever came between."""
        lost = next((one for one in self.record.pending if one.epoch not in self.epochs.open), None)
        # Where one may be a point already, the vault is asked first.
        with _as_far_as_there_is_room():
            # Those that stay pending are looked at again when they are about to be sent.
            if lost is not None and not lost.attempt:
                self._fail_lost()
            for one in self.record.pending:
                if not one.attempt and (problem := self._unwritten(one)):
                    self.fail_snapshot(one, problem, compare=False)
        if not self.volume.read_only:
            with _as_far_as_there_is_room():
                self.end_nobodys()
            for epoch in self._completed():
                with _as_far_as_there_is_room():
                    self.epochs.drop(epoch)

    def _fail_lost(self) -> None:
        """The first pending snapshot of which nothing is held any more will never be a point, nor will those that rest on it."""
        there, pending = self.epochs.open, self.record.pending
        lost = next((at for at, one in enumerate(pending) if one.epoch not in there), len(pending))
        # From the last to the first: should this end halfway, the next start still finds the one that the others rest on.
        for one in reversed(pending[lost:]):
            self.fail_snapshot(one, _RESTED if one.epoch in there else _GONE, compare=False)

    def _completed(self) -> set[int]:
        """Open epochs that only have to be let go of."""
        return {one.epoch for one in self.record.snapshots if one.state is SnapshotState.COMPLETED} & set(
            self.epochs.open
        )

    def end_nobodys(self) -> None:
        """A seal that nobody recorded belongs to nobody, and what it changed to the next one. Nobody seals meanwhile. OSError."""
        pending = {one.epoch for one in self.record.pending}
        for epoch in sorted(set(self.epochs.open) - pending - self._completed()):
            self.epochs.pass_on(epoch)
            self.epochs.drop(epoch)

    def _unwritten(self, snapshot: Snapshot) -> str:
        """Why the disk below may not have what the maps say that it has of a pending snapshot (what it was sealed with, what was moved to where it is
        since, or what was filled in since), or nothing.
        """
        if not self.volume.read_only:
            return ""
        if not snapshot.durable:
            return _NOT_WRITTEN
        return _MOVED if self.epochs.header.moving or self.record.pin else ""

    def demand_read(self, identity: str) -> None:
        """As `demand_pending`, once all of a snapshot was read: what is not on the disk yet was read from the page cache, or from where the disk
        should have it and has not, of which only a flush tells.
        """
        if not self.volume.read_only:
            try:
                self.volume.prove()
            except OSError:
                # It is read-only then, and what the maps say of any snapshot is not to be believed: that is looked at next.
                self.epochs.header.move(begun=True)
        self.demand_pending(identity)

    def demand_pending(self, identity: str) -> None:
        """FailedError where a snapshot is pending no more, or can be no point any more, which is on record then: somebody is about to send it."""
        for one in self.record.pending:
            if one.id == identity and one.epoch not in self.epochs.open:
                self._fail_lost()
            elif one.id == identity and (problem := self._unwritten(one)):
                self.fail_snapshot(one, problem, compare=False)
        failed = next((one for one in self.record.snapshots if one.id == identity), None)
        if failed is None or failed.state is not SnapshotState.PENDING:
            raise FailedError(
                (failed and failed.problem) or "the snapshot is pending no more",
                on=self.name,
                remedy="take another one",
            )

    def settle(self, snapshot: Snapshot) -> None:
        """Have a pending snapshot survive a power loss. OSError where it does not; on a volume that its disk has failed it is none then."""
        try:
            self.epochs.settle(snapshot.epoch)
        except OSError:
            # Where it may be a point already, the vault is asked first.
            if self.volume.read_only and not any(one.attempt for one in self.record.pending if one.id == snapshot.id):
                self.fail_snapshot(snapshot, _NOT_WRITTEN, compare=False)
            raise
        with self._changing:
            if any(one.id == snapshot.id for one in self.record.pending):
                self._change_snapshot(snapshot.id, None, {"durable": True})

    def fail_snapshot(self, snapshot: Snapshot, problem: str, *, compare: bool) -> None:
        """A pending snapshot will never be a point; with `compare` the next one reads everything. Harmless where it is not pending any more.
        OSError.
        """
        self._fail(snapshot, problem, compare, lambda now: True)

    def discard_snapshot(self, snapshot: Snapshot, problem: str) -> None:
        """A pending snapshot will never be a point, unless somebody has vouched for it. OSError."""
        self._fail(snapshot, problem, False, lambda now: not now.vouched)

    def _fail(self, snapshot: Snapshot, problem: str, compare: bool, holds: Callable[[Snapshot], bool]) -> None:
        # First: as soon as the record says that it failed, the next one may be sent, which is to have what this one changed.
        if not self.volume.read_only:
            self.epochs.pass_on(snapshot.epoch)
        else:
            self._fail_later(snapshot, holds)
        with self._changing:
            now = next((one for one in self.record.pending if one.id == snapshot.id), None)
            if now is None or not holds(now):
                return
            suspect = problem if compare else self.record.suspect
            failed = msgspec.structs.replace(now, state=SnapshotState.FAILED, problem=problem)
            snapshots = tuple(failed if one.id == snapshot.id else one for one in self.record.snapshots)
            self._replace(msgspec.structs.replace(self.record, suspect=suspect, snapshots=_kept(snapshots)))
        if not self.volume.read_only:
            self.epochs.drop(snapshot.epoch)

    def _fail_later(self, snapshot: Snapshot, holds: Callable[[Snapshot], bool]) -> None:
        """On a disk that takes no more, what a snapshot changed that fails cannot be passed on to those that rest on it."""
        pending = self.record.pending
        at = next((at for at, one in enumerate(pending) if one.id == snapshot.id and holds(one)), len(pending))
        for later in reversed(pending[at + 1 :]):
            self.fail_snapshot(later, _RESTED, compare=False)

    def attempt(self, identity: str, attempt: Attempt) -> None:
        """The snapshot is about to become a point. OSError; should its vault have the point and nobody be told, there will be another of it."""
        self.ids.keep(attempt.point)
        self.change_snapshot(identity, attempt=attempt)

    def complete_snapshot(self, identity: str, lineage: Lineage, *, read: int, stored: int) -> None:
        """The oldest pending snapshot has become the point of that lineage; harmless where it has failed meanwhile. OSError; what is left is done
        by another call then.
        """
        snapshot = next((one for one in self.record.snapshots if one.id == identity), None)
        if snapshot is None or snapshot.state is SnapshotState.FAILED:
            return
        if snapshot.state is SnapshotState.PENDING:
            self.ids.keep(lineage.point)
            self.change_snapshot(
                identity,
                lineage,
                state=SnapshotState.COMPLETED,
                point=lineage.point,
                read=read,
                stored=stored,
                problem="",
                attempt=None,
            )
        self.ids.adopt(lineage.point)
        if self.volume.read_only:
            return
        self.epochs.drop(snapshot.epoch)

    @property
    def missing(self) -> int:
        """Blocks that are not all here."""
        states = self.volume.maps.states
        return states.length - states.cells[: states.length].count(PRESENT)
