"""Brings the snapshots of all volumes to their vaults, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from safehold.app.host import Host
from safehold.app.snapshots import Committed, Described, commit, complete, next_group
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.epochs import PutAway
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot
from safehold.model.background import BackgroundLoop
from safehold.model.context import Context
from safehold.vault.vault import Vault

__all__ = ["Uploader"]

_AT_LEAST = 120.0
"""Seconds after which it looks again whether there is anything to do."""

_PATIENCE = (1.0, 5.0, 15.0, 60.0)
"""Seconds until a snapshot that could not be brought to its vault is tried again, the last one for ever."""


class Uploader(BackgroundLoop):
    """It also folds away what was redirected for the sake of snapshots, so that no more are sent than can be folded. `problems` says why a volume's
    snapshots do not reach the vault at the moment, `sending` which volumes' one is on its way.
    """

    def __init__(
        self,
        directory: VolumeDirectory,
        open_vault: Callable[[str], Vault],
        host: Host,
        describe: Described,
        ctx: Context,
    ) -> None:
        """`open_vault` opens the vault at an address, anew each time."""
        super().__init__("snapshots")
        self._directory, self._open_vault = directory, open_vault
        self._host, self._describe, self._ctx = host, describe, ctx
        self.problems: dict[str, str] = {}
        self.sending: frozenset[str] = frozenset()
        self._postponed: dict[str, tuple[float, int]] = {}
        """Until when a snapshot waits, by the monotonic clock, and how often it has failed to be sent."""
        self._unfinished: list[Committed] = []
        self._failures = 0
        """Turns that failed, one after the other."""

    def failed(self, error: Exception) -> float:
        """See `BackgroundLoop`."""
        self._tell([held.name for held in self._directory.all() if held.record.pending], "waits", error)
        pause = _PATIENCE[min(self._failures, len(_PATIENCE) - 1)]
        self._failures += 1
        return pause

    def turn(self) -> float:
        """See `BackgroundLoop`."""
        pause = self._next()
        self._failures = 0
        return pause

    def _next(self) -> float:
        """Do what is next; returns for how many seconds there is nothing more."""
        volumes = self._directory.all()
        # One moment for the whole turn: what waits at its beginning is waited for at its end.
        now = self._ctx.clock.monotonic()
        waiting = {identity for identity, (when, _) in self._postponed.items() if when > now}
        for committed in list(self._unfinished):
            if committed.snapshot not in waiting:
                self._finish(committed)
        self._fold(volumes)
        unfinished = {name for committed in self._unfinished for name in committed.members}
        with self._directory.standing() as volumes:
            # What is being put away is not sent; whether it is lost to its group is seen after that.
            busy = self._directory.busy.keys()
            group, torn = next_group(volumes, waiting, unfinished | busy)
            of = [snapshot for _, snapshot in group] + [snapshot for _, snapshot, _ in torn]
            if any(busy & set(snapshot.group) for snapshot in of):
                group, torn = [], []
            # Nobody deletes a volume from here on.
            self.sending = frozenset(held.name for held, _ in group)
        if torn:
            for held, snapshot, why in torn:
                held.fail_snapshot(snapshot, why, compare=False)
            return 0.0
        if group:
            self._upload(group)
            return 0.0
        for name in list(self.problems):
            if name not in unfinished and not any(held.name == name and held.record.pending for held in volumes):
                self.problems.pop(name, None)
        return min((when - now for when, _ in self._postponed.values() if when > now), default=_AT_LEAST)

    def _postpone(self, identity: str) -> None:
        """Try again later, and go on with other volumes meanwhile."""
        _, failures = self._postponed.get(identity, (0.0, 0))
        pause = _PATIENCE[min(failures, len(_PATIENCE) - 1)]
        self._postponed[identity] = self._ctx.clock.monotonic() + pause, failures + 1

    def _tell(self, names: Sequence[str], what: str, error: Exception) -> None:
        if self.stopped:
            return
        for name in names:
            self.problems[name] = f"its snapshot {what}: {error}"
        self._ctx.progress.warn(f"snapshot of {', '.join(names)}: {error}")

    def _fold(self, volumes: Sequence[HeldVolume]) -> None:
        for held in volumes:
            try:
                if not held.volume.read_only and not self.stopped:
                    held.epochs.fold(lambda: self.stopped)
            except PutAway:
                pass
            except OSError as error:
                self._ctx.progress.warn(f"{held.name}: what was written beside its data stays there ({error.strerror})")

    def _upload(self, group: list[tuple[HeldVolume, Snapshot]]) -> None:
        names, identity = [held.name for held, _ in group], group[0][1].id
        try:
            for held, snapshot in group:
                if not snapshot.durable:
                    # Before it is a point: of one that the vault has, the volume knows.
                    try:
                        held.settle(snapshot)
                    except OSError:
                        # A point has what a power loss would take from the volume, which is no harm. But what is missing would count as in the point
                        # then, and it is not.
                        if held.missing:
                            raise
            vault = self._open_vault(group[0][0].record.vault)
            committed = commit(vault, group, self._host, self._describe, self._ctx)
        except Exception as error:
            # One that has failed for good does not wait.
            if any(s.id == identity for held, _ in group for s in held.record.pending):
                self._tell(names, "waits", error)
                self._postpone(identity)
            else:
                self._ctx.progress.warn(f"snapshot of {', '.join(names)}: {error}")
            return
        finally:
            self.sending = frozenset()
        self._unfinished.append(committed)
        self._postponed.pop(identity, None)
        self._finish(committed)

    def _finish(self, committed: Committed) -> None:
        """Have its volumes know the point, however often that takes."""
        names = list(committed.members)
        try:
            complete(committed, [held for held in self._directory.all() if held.name in names])
        except Exception as error:
            self._tell(names, f"is point {committed.point[:8]}, which cannot be noted here", error)
            self._postpone(committed.snapshot)
            return
        self._unfinished.remove(committed)
        self._postponed.pop(committed.snapshot, None)
        for name in names:
            self.problems.pop(name, None)
        self._ctx.progress.note(f"{', '.join(names)}: snapshot {committed.snapshot[:8]} is point {committed.point[:8]}")
