"""Volumes that are made of points, filled in behind: one hydrator for each of them, and none for one that is put away."""

from __future__ import annotations

import threading
from collections.abc import Callable

from safehold.app.points import member_of, parse_selector, select
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import VolumeRecord
from safehold.model.context import Context
from safehold.recovery.hydration import Hydrator
from safehold.vault.disk import StoredDisk
from safehold.vault.vault import Vault

__all__ = ["Filling"]


class Filling:
    """The hydrators of one machine's volumes. Thread-safe."""

    def __init__(
        self,
        directory: VolumeDirectory,
        open_vault: Callable[[str], Vault],
        let_go: Callable[[VolumeRecord], bool],
        ctx: Context,
    ) -> None:
        """`open_vault` opens the vault at an address, anew each time; `let_go` lets go of the point that a volume was made of, and is false where
        that cannot be now.
        """
        self._directory, self._open_vault, self._let_go, self._ctx = directory, open_vault, let_go, ctx
        self._lock = threading.Lock()
        self._at_work: dict[str, tuple[HeldVolume, Hydrator]] = {}
        self._stopped = False

    def begin(self, held: HeldVolume, disk: StoredDisk | None = None) -> None:
        """Have a volume be filled in that is not yet, or has not let go of its point yet: it ends with that. `disk` is its point's where that is
        open. Nothing happens where one is at work on it already, and to a volume that is put away.
        """
        if not held.record.origin or not (held.record.pin or held.missing):
            return
        with self._lock:
            known = self._at_work.get(held.name)
            if known is not None and known[0] is held:
                return
            # Looked at under the lock that `end` takes: whoever puts it away says so first, and ends what works on it then.
            if self._stopped or not self._directory.serves(held):
                return
            hydrator = self._hydrator(held, disk)
            self._at_work[held.name] = held, hydrator
            hydrator.start()
        if known is not None:
            # Of a volume that had the name before.
            known[1].stop()

    def end(self, name: str) -> None:
        """Return when nothing works any more on the volume of that name."""
        with self._lock:
            _, hydrator = self._at_work.pop(name, (None, None))
        if hydrator is not None:
            hydrator.stop()

    def stop(self) -> None:
        """Return when nothing works on any volume; nothing is begun any more."""
        with self._lock:
            self._stopped = True
            at_work = list(self._at_work.values())
        for _, hydrator in at_work:
            hydrator.stop()

    def problem(self, held: HeldVolume) -> str:
        """Why something of a volume is not here yet, or nothing."""
        of, hydrator = self._at_work.get(held.name, (None, None))
        return hydrator.problem if hydrator is not None and of is held else ""

    def _hydrator(self, held: HeldVolume, disk: StoredDisk | None) -> Hydrator:
        selector = held.record.origin

        def open_disk() -> StoredDisk:
            vault = self._open_vault(held.record.vault)
            points, rejected = vault.points()
            point = select(points, selector, rejected)
            return vault.disk(point, member_of(point, parse_selector(selector).resource))

        def done() -> bool:
            if not self._let_go(held.record):
                return False
            held.update(pin="")
            self._ctx.progress.note(
                f"{held.name}: everything of {selector} is here, and nothing depends on it any more"
            )
            return True

        return Hydrator(held.volume, disk, open_disk, done, self._ctx)
