"""The recycle bin of a machine's volumes at work: taken back from, emptied, and told of where something in it is damaged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import VolumeRecord
from safehold.blocks.recycle_bin import Deleted
from safehold.model.background import background_thread
from safehold.model.context import Context
from safehold.model.errors import FailedError

__all__ = ["RECYCLE", "Recycling"]

RECYCLE = 7 * 86400.0
"""Seconds that a deleted volume can be taken back."""
_EMPTYING = 3600.0
"""Seconds until the recycle bin is looked through again."""


class Recycling:
    """One thread that empties the bin, and what operators ask of it. Thread-safe."""

    def __init__(self, directory: VolumeDirectory, let_go: Callable[[VolumeRecord], bool], ctx: Context) -> None:
        """`let_go` lets go of the point that a volume was made of; false where that cannot be now."""
        self._directory, self._let_go, self._ctx = directory, let_go, ctx
        self._working = threading.Lock()
        self._told: set[str] = set()
        self.waiting: tuple[str, ...] = ()
        """Volumes that are gone, and whose point is still kept for them: the vault could not be told."""
        self._thread = background_thread(self._keep, "recycle bin")

    def start(self) -> None:
        """Empty the bin from here on, beginning with what a kill has left."""
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended. The run's cancel token makes that soon."""
        self._thread.join()

    def take_back(self, name: str) -> HeldVolume:
        """See `VolumeDirectory.undelete`."""
        with self._working:
            return self._directory.undelete(name)

    def discard(self, name: str, wanted: Callable[[Deleted], bool]) -> list[Deleted]:
        """Delete for good what is wanted of the volumes of that name in the bin; gives what that was. Their points are let go of. FailedError
        where that cannot be now: the volume is in the bin then.
        """
        gone = []
        with self._working:
            for entry in self._directory.bin.entries():
                if not entry.called(name) or not wanted(entry):
                    continue
                if not self._remove(entry):
                    raise FailedError(
                        "the vault cannot be reached to let go of its point; the volume is in the recycle bin",
                        on=name,
                        remedy="run it again when the vault is there",
                    )
                gone.append(entry)
        return gone

    def empty(self) -> None:
        """Delete for good what was put into the bin long enough ago, and what was left on its way out. A volume whose point cannot be let go of
        now stays until another time. One whose record cannot be read stays until somebody says so: nobody knows what it is.
        """
        with self._working:
            self._finish()
            for entry in self._directory.bin.entries():
                if entry.record is None:
                    self._tell(entry)
                elif entry.when < self._ctx.clock.now() - RECYCLE:
                    with self._telling(entry):
                        if self._remove(entry):
                            self._ctx.progress.note(
                                f"{entry.name}: deleted for good after {RECYCLE / 86400:.0f} days in the recycle bin"
                            )

    def finish(self) -> None:
        """Let go for good of what was left on its way out."""
        with self._working:
            self._finish()

    def _finish(self) -> None:
        waiting = []
        for entry in self._directory.bin.outgoing():
            with self._telling(entry):
                # A record goes only after its point was let go of: where there is none, nothing is left to be let go of.
                if entry.record is None or self._let_go(entry.record):
                    self._directory.bin.destroy(entry)
                else:
                    waiting.append(entry.name)
        self.waiting = tuple(waiting)

    def _remove(self, entry: Deleted) -> bool:
        """False where its point cannot be let go of now; it is as it was then. OSError."""
        bin_ = self._directory.bin
        # First: a volume that could be taken back when its point is no longer kept for it would lack blocks.
        going = bin_.expel(entry)
        if entry.record is not None and not self._let_go(entry.record):
            bin_.readmit(going)
            return False
        bin_.destroy(going)
        return True

    @contextlib.contextmanager
    def _telling(self, entry: Deleted) -> Iterator[None]:
        """One that cannot be deleted keeps no other from it."""
        try:
            yield
        except OSError as error:
            self._ctx.progress.warn(f"{entry.place} in the recycle bin is not deleted: {error.strerror or error}")

    def _tell(self, entry: Deleted) -> None:
        if entry.place.name not in self._told:
            self._told.add(entry.place.name)
            self._ctx.progress.warn(
                f"volume {entry.name} in the recycle bin is damaged ({entry.problem}) and stays → "
                f"safehold volume delete {entry.place.name} --for-good"
            )

    def _keep(self) -> None:
        while True:
            try:
                self.empty()
            except Exception as error:  # the last line of defence: what is in the bin takes room, and pins points
                self._ctx.progress.warn(f"the recycle bin is not emptied: {error}")
            if self._ctx.cancel.wait(_EMPTYING):
                return
