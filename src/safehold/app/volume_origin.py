"""What a volume that is made of a point begins with: its record, what it lacks, and the ids of its blocks."""

from __future__ import annotations

from collections.abc import Iterator

from safehold.blocks.layout import Lineage, VolumeRecord
from safehold.model.errors import UsageError
from safehold.model.extents import ExtentKind
from safehold.vault.catalogue import Point
from safehold.vault.disk import StoredDisk
from safehold.vault.records import Member
from safehold.vault.vault import Vault

__all__ = ["BLOCK", "block_for", "data_runs", "ids_of", "record_of"]

BLOCK = 512 * 1024
"""Bytes of a volume's block, unless the vault's are larger."""

_IDS_AT_ONCE = 4096


def block_for(unit: int) -> int:
    """The volume's block where the vault has blocks of `unit` bytes: a whole number of those, as what is taken over of a point is whole blocks."""
    return unit * max(1, BLOCK // unit)


def record_of(record: VolumeRecord, vault: Vault, point: Point, member: Member, disk: StoredDisk) -> VolumeRecord:
    """The record of a volume that is made of a point."""
    if disk.block_size % 4096:
        raise UsageError(
            f"blocks of {disk.block_size} bytes cannot be filled in behind",
            on=member.name,
            remedy="safehold restore to a file",
        )
    certificate = vault.certificate(point.wid)
    domain = certificate.domain.hex() if certificate else ""
    ours = domain == vault.writer().domain.hex() and disk.block_size == vault.parameters.block_size
    lost = next((run for run in disk.tree.runs() if run.lost), None)
    if lost is not None:
        start, end = disk.span(lost.first, lost.count)
        vault.ctx.progress.warn(f"reading bytes {start}-{end - 1} of {record.name} will fail: {lost.lost}")
    suspect = "it was made of another writer's point" if not ours else "its point is damaged" if lost else ""
    return VolumeRecord(
        record.name,
        record.uuid,
        member.size,
        block_for(disk.block_size),
        record.vault,
        record.created,
        origin=f"{member.name}@{point.id}",
        lineage=None if suspect else Lineage(vault.id.hex(), point.id, member.size, domain, member.root.hex()),
        suspect=f"{suspect}: the first snapshot reads everything" if suspect else "",
    )


def data_runs(disk: StoredDisk, block: int) -> Iterator[tuple[int, int]]:
    """Runs of blocks of the volume that have data in the point."""
    for extent in disk.extents():
        if extent.kind is ExtentKind.DATA:
            yield extent.offset // block, -(-extent.end // block)


def ids_of(disk: StoredDisk) -> Iterator[tuple[int, bytes]]:
    """First blocks and the ids from there on, of all that has data, in order."""
    for run in disk.tree.runs():
        end = run.first + run.count
        for first in range(run.first, end, _IDS_AT_ONCE) if run.data else ():
            yield first, b"".join(disk.tree.block_ids(first, min(_IDS_AT_ONCE, end - first)))
