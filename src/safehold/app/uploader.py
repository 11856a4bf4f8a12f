"""Brings the snapshots of all volumes to their vaults, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from safehold.app.backup import Host
from safehold.app.snapshots import Described, next_group, upload
from safehold.blocks.directory import HeldVolume, VolumeDirectory
from safehold.blocks.layout import Snapshot
from safehold.model.background import background_thread
from safehold.model.context import Context
from safehold.vault.vault import Vault

__all__ = ["Uploader", "discard"]

_PATIENCE = (1.0, 5.0, 15.0, 60.0)
"""Seconds until a snapshot that could not be brought to its vault is tried again, the last one for ever."""

_VOUCHING = 120.0
"""Seconds in which somebody has to vouch for a snapshot: letting go of brackets takes less."""


def discard(volumes: Sequence[HeldVolume], identity: str, why: str) -> None:
    """A pending snapshot has failed in every volume that has it."""
    for held in volumes:
        for snapshot in held.record.pending:
            if snapshot.id == identity:
                held.fail_snapshot(snapshot, why, compare=False)


class Uploader:
    """One thread. `problems` says why a volume's snapshots do not reach the vault at the moment, `sending` which volumes' one is on its way."""

    def __init__(
        self,
        directory: VolumeDirectory,
        open_vault: Callable[[str], Vault],
        host: Host,
        describe: Described,
        ctx: Context,
    ) -> None:
        """`open_vault` opens the vault at an address, anew each time."""
        self._directory, self._open_vault = directory, open_vault
        self._host, self._describe, self._ctx = host, describe, ctx
        self.problems: dict[str, str] = {}
        self.sending: frozenset[str] = frozenset()
        self._postponed: dict[str, tuple[float, int]] = {}
        """Until when a snapshot waits, by the monotonic clock, and how often it has failed to be sent."""
        self._changed = threading.Condition()
        self._woken = self._stopped = False
        self._thread = background_thread(self._work_off, "snapshots")

    def start(self) -> None:
        """Go on with whatever is pending."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Return when the thread has ended. The run's cancel token makes that soon."""
        self._stopped = True
        self.wake()
        self._thread.join()

    def _work_off(self) -> None:
        while not self._stopped:
            self._discard_unvouched()
            self._settle_all()
            now = self._ctx.clock.monotonic()
            postponed = {identity for identity, (when, _) in self._postponed.items() if when > now}
            group = next_group(self._directory.all(), postponed)
            if not group:
                self._wait(min((when - now for when, _ in self._postponed.values() if when > now), default=_VOUCHING))
                continue
            try:
                self._upload(group)
            except (
                Exception
            ) as error:  # the last line of defence: a thread that died would leave snapshots pending for ever
                if self._stopped:
                    return
                self._postpone(group, error)

    def _postpone(self, group: list[tuple[HeldVolume, Snapshot]], error: Exception) -> None:
        """Try again later, and go on with other volumes meanwhile; a snapshot that has failed for good is none of them."""
        identity = group[0][1].id
        names = ", ".join(held.name for held, _ in group)
        for held, _ in group:
            self.problems[held.name] = f"its snapshot waits: {error}"
        self._ctx.progress.warn(f"snapshot of {names}: {error}")
        if any(s.id == identity for held, _ in group for s in held.record.pending):
            _, failures = self._postponed.get(identity, (0.0, 0))
            pause = _PATIENCE[min(failures, len(_PATIENCE) - 1)]
            self._postponed[identity] = self._ctx.clock.monotonic() + pause, failures + 1
        else:
            for held, _ in group:
                self.problems.pop(held.name, None)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            if not self._stopped and not self._woken:
                self._changed.wait(seconds)
            self._woken = False

    def _discard_unvouched(self) -> None:
        for held in self._directory.all():
            for snapshot in held.record.pending:
                if not snapshot.vouched and self._ctx.clock.now() - snapshot.taken[1] > _VOUCHING:
                    discard(
                        self._directory.all(), snapshot.id, "whoever took it died before saying how still it was held"
                    )

    def _settle_all(self) -> None:
        """Have every sealed epoch survive a power loss, whether or not it can be sent."""
        for held in self._directory.all():
            for snapshot in held.record.pending:
                if not snapshot.durable:
                    try:
                        held.settle(snapshot)
                    except OSError as error:
                        self.problems[held.name] = f"its snapshot does not survive a power loss: {error.strerror}"

    def _upload(self, group: list[tuple[HeldVolume, Snapshot]]) -> None:
        self.sending = frozenset(held.name for held, _ in group)
        try:
            vault = self._open_vault(group[0][0].record.vault)
            point = upload(vault, group, self._host, self._describe, self._ctx)
        finally:
            self.sending = frozenset()
        names = ", ".join(held.name for held, _ in group)
        self._postponed.pop(group[0][1].id, None)
        for held, _ in group:
            self.problems.pop(held.name, None)
        self._ctx.progress.note(f"{names}: snapshot {group[0][1].id[:8]} is point {point[:8]}")
