"""The volumes of a machine at work: made, snapshotted, filled in, and their snapshots brought to the vault."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from safehold.app.filling import Filling
from safehold.app.host import Host
from safehold.app.pins import Pins
from safehold.app.points import member_of, parse_selector, pick
from safehold.app.recycling import Recycling
from safehold.app.settling import Settler, discard
from safehold.app.snapshots import Described
from safehold.app.uploader import Uploader
from safehold.app.volume_origin import BLOCK, block_for, data_runs, ids_of, record_of
from safehold.blocks.directory import VolumeDirectory
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Snapshot, SnapshotState, VolumeRecord
from safehold.blocks.names import check_name
from safehold.blocks.recycle_bin import Deleted
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, FailedError, SafeholdError, UsageError
from safehold.model.quiet import Quieted
from safehold.model.units import format_size
from safehold.vault.vault import Vault

__all__ = ["BLOCK", "SnapshotRequest", "VolumeService"]

LARGEST = 1 << 50
"""Bytes of a volume: its maps take 4 GiB then."""


@dataclass(frozen=True)
class SnapshotRequest:
    """Volumes to seal at one instant. `asked` is for each the least consistency that will do, crash where nothing is said; with `vouching`
    somebody will say how still they were held, by `VolumeService.vouch`, and nothing is sent before.
    """

    names: Sequence[str]
    asked: Mapping[str, Consistency] = field(default_factory=dict)
    tags: Mapping[str, str] | None = None
    vouching: bool = False

    def least(self, name: str) -> Consistency:
        """What will do of a volume."""
        return self.asked.get(name, Consistency.CRASH)


class VolumeService:
    """Works behind the served volumes until it is stopped. Thread-safe."""

    def __init__(
        self,
        directory: VolumeDirectory,
        open_vault: Callable[[str], Vault],
        host: Host,
        describe: Described,
        ctx: Context,
    ) -> None:
        """`open_vault` opens the vault at an address, anew each time."""
        self.directory = directory
        self._open_vault = open_vault
        self._ctx = ctx
        self._pins = Pins(open_vault, host, ctx)
        self._filling = Filling(directory, open_vault, self._pins.let_go, ctx)
        self._uploader = Uploader(directory, open_vault, host, describe, ctx)
        self._settler = Settler(directory, self._uploader.wake, ctx)
        self._recycling = Recycling(directory, self._pins.let_go, ctx)

    def start(self) -> None:
        """Go on with whatever was under way."""
        for held in self.directory.all():
            self._filling.begin(held)
        self._settler.start()
        self._uploader.start()
        self._recycling.start()

    def stop(self) -> None:
        """End what works behind at the next safe place, and put the volumes away."""
        self.rest()
        self.directory.close()

    def rest(self) -> None:
        """End what works behind at the next safe place. What is missing gives EIO from here on."""
        self._ctx.cancel.cancel()
        self._filling.stop()
        self._uploader.stop()
        self._settler.stop()
        self._recycling.stop()

    # -- making and filling in ---------------------------------------------------------------------------------------

    def create(self, name: str, size: int, vault: str, origin: str = "") -> HeldVolume:
        """A volume of zeros, or with `origin` (RESOURCE@WHEN) one with the content of that point, usable at once. `size` 0 means that of the
        point. UsageError for a size or a point that will not do.
        """
        check_name(name)
        record = VolumeRecord(name, uuid.uuid4().hex, size, BLOCK, vault, self._ctx.clock.now())
        if not origin:
            _check_size(name, size)
            return self._make(msgspec.structs.replace(record, block=self._block(vault)), (), (), lambda: None)
        opened = self._open_vault(vault)
        (point,) = pick(opened, origin)
        member = member_of(point, parse_selector(origin).resource)
        if member.kind != "volume":
            raise UsageError(f"a {member.kind} is no disk", on=origin, remedy="restore it: safehold restore")
        if size and size < member.size:
            raise UsageError(
                f"the point has {member.size} bytes, and a volume of it cannot be smaller",
                on=name,
                remedy="leave out --size",
            )
        disk = opened.disk(point, member)
        record = record_of(record, opened, point, member, disk)
        # On record before it is put: whatever comes between, there is somebody to let go of it.
        record = msgspec.structs.replace(record, pin=opened.expiry().fresh_pin())
        ids = ids_of(disk) if record.lineage else ()
        held = self._make(record, data_runs(disk, record.block), ids, lambda: self._pins.put(opened, point, record))
        self._filling.begin(held, disk)
        if size <= record.size:
            return held
        try:
            return self.resize(name, size)
        except (SafeholdError, OSError) as error:
            raise FailedError(
                f"the volume is there with the {format_size(record.size)} of its point, and could not be made larger: {error}",
                on=name,
                remedy=f"safehold volume resize {name} --size {size}",
            ) from error

    def _block(self, vault: str) -> int:
        """Of a new volume. Where the vault cannot be asked now: its first snapshot will be told if that does not go with the vault's."""
        try:
            return block_for(self._open_vault(vault).parameters.block_size)
        except (SafeholdError, OSError):
            return BLOCK

    def _make(
        self,
        record: VolumeRecord,
        missing: Iterable[tuple[int, int]],
        ids: Iterable[tuple[int, bytes]],
        recorded: Callable[[], None],
    ) -> HeldVolume:
        try:
            return self.directory.create(record, missing, ids, recorded)
        except BaseException:
            self._recycling.finish()
            raise

    def _fill_in(self, name: str) -> None:
        for held in self.directory.all():
            if held.name == name:
                self._filling.begin(held)

    def delete_for_good(self, name: str) -> list[Deleted]:
        """Delete a volume, or those of that name in the recycle bin where there is none, with nothing to take back; its point is let go of.
        Gives what went. FailedError where that cannot be now: it lies in the bin then.
        """
        if not self.directory.has(name) and any(one.called(name) for one in self.directory.bin.entries()):
            return self._recycling.discard(name, lambda entry: True)
        place = self.delete(name)
        return self._recycling.discard(name, lambda entry: str(entry.place) == place)

    def delete(self, name: str) -> str:
        """Put a volume into the recycle bin; returns where it lies. Snapshots that have not reached the vault are none then. UsageError where
        one is being sent at this moment.
        """

        def demand() -> None:
            if name in self._uploader.sending:
                raise UsageError(
                    "a snapshot is being sent to the vault", on=name, remedy="wait for it, then delete the volume"
                )

        try:
            return str(self.directory.delete(name, demand, self._filling.end))
        finally:
            self._fill_in(name)
            # Snapshots of other volumes waited for what would become of this one.
            self._wake()

    def undelete(self, name: str) -> HeldVolume:
        """Take a volume out of the recycle bin."""
        held = self._recycling.take_back(name)
        self._filling.begin(held)
        self._wake()
        return held

    @property
    def waiting(self) -> tuple[str, ...]:
        """See `Recycling.waiting`."""
        return self._recycling.waiting

    def empty_bin(self) -> None:
        """See `Recycling.empty`."""
        self._recycling.empty()

    def resize(self, name: str, size: int) -> HeldVolume:
        """Make a volume larger."""
        _check_size(name, size)
        try:
            return self.directory.resize(name, size, self._filling.end)
        finally:
            # Also where it failed: it goes on with the size that it had.
            self._fill_in(name)
            self._wake()

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def snapshot(self, request: SnapshotRequest) -> Snapshot:
        """Seal; the snapshot is pending when this returns. ConsistencyError where more is asked for than a seal by itself gives, UsageError
        for volumes that do not go to the same vault: they cannot be one point.
        """
        if not request.vouching:
            for name in request.names:
                _check_level(Consistency.CRASH, request.least(name), name)
        names = tuple(sorted(set(request.names)))
        _check_one_vault([self.directory.get(name) for name in names])
        identity = uuid.uuid4().hex

        def describe(held: HeldVolume, taken: tuple[float, float]) -> Snapshot:
            return Snapshot(
                identity,
                held.volume.gate.phase.epoch - 1,
                taken,
                Consistency.CRASH.label,
                request.least(held.name).label,
                group=names if len(names) > 1 else (),
                tags=dict(request.tags or {}),
                vouched=not request.vouching,
            )

        try:
            return self.directory.seal(names, describe)[0]
        finally:
            # Also where it failed: then there is something to fold away.
            self._wake()

    def _wake(self) -> None:
        """There is something new for what works behind."""
        self._settler.wake()
        self._uploader.wake()

    def vouch(
        self, identity: str, achieved: Mapping[str, Consistency], quiet: Mapping[str, tuple[Quieted, ...]]
    ) -> None:
        """Say of each volume of a snapshot how still it was held (crash where nothing is said), and by what; it goes to the vault from here on.
        ConsistencyError where that is less than was asked for: the snapshot has failed then. FailedError where it had failed before.
        """
        found = self.find(identity)
        if not found:
            raise UsageError("no such snapshot", on=identity)
        reached = {held.name: achieved.get(held.name, Consistency.CRASH) for held, _ in found}
        try:
            for held, snapshot in found:
                _check_level(reached[held.name], Consistency.parse(snapshot.asked), held.name)
        except ConsistencyError as error:
            self.discard(identity, str(error))
            raise
        for held, _ in found:
            snapshot = held.vouch(identity, reached[held.name].label, quiet.get(held.name, ()))
            if snapshot.state is not SnapshotState.PENDING:
                raise FailedError(
                    f"the snapshot has failed: {snapshot.problem}", on=held.name, remedy="take another snapshot"
                )
        self._uploader.wake()

    def discard(self, identity: str, why: str) -> None:
        """A snapshot that nobody vouches for is none."""
        try:
            discard(self.directory.all(), identity, why)
        finally:
            # Others may have waited behind it.
            self._uploader.wake()

    def find(self, identity: str) -> list[tuple[HeldVolume, Snapshot]]:
        """A snapshot in every volume that has it."""
        return [(held, s) for held in self.directory.all() for s in held.record.snapshots if s.id == identity]

    def problem(self, held: HeldVolume) -> str:
        """What an operator should know of a volume, or nothing."""
        return "; ".join(
            filter(
                None,
                (
                    held.problem,
                    self._settler.problems.get(held.name, ""),
                    self._uploader.problems.get(held.name, ""),
                    self._filling.problem(held),
                ),
            )
        )


def _check_size(name: str, size: int) -> None:
    if not 0 < size <= LARGEST or size % 512:
        raise UsageError(
            f"the size of a volume is a multiple of 512 bytes, and at most {format_size(LARGEST)}",
            on=name,
            remedy="such as --size 10G",
        )


def _check_level(achieved: Consistency, asked: Consistency, name: str) -> None:
    if achieved < asked:
        raise ConsistencyError(
            f"{achieved.label} consistency reached, {asked.label} asked for",
            on=name,
            remedy="give a --bracket that reaches it, or ask for less with --require",
        )


def _check_one_vault(group: Sequence[HeldVolume]) -> None:
    vaults = {held.record.vault for held in group}
    if len(vaults) > 1:
        raise UsageError(
            "a snapshot is one point in one vault, and these volumes go to several: "
            + ", ".join(f"{held.name} to {held.record.vault}" for held in group),
            on=", ".join(held.name for held in group),
            remedy="take one of the volumes of each vault",
        )
