"""What lies on a disk, by the signatures that libblkid knows: enough to tell a restore what to put together again."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

from safehold.model.errors import SourceError
from safehold.model.topology import FileSystem, Topology
from safehold.ports.blocks import Blocks

__all__ = ["cleanly_unmounted", "detect"]

_SECTOR = 512
_EXT_AT, _EXT_MAGIC, _EXT_CLEAN, _EXT_RECOVER, _EXT_JOURNAL, _EXT_EXTENTS = 1024, 0xEF53, 1, 0x4, 0x4, 0x40
_BTRFS_AT = 65536
_PAGE = 4096
_LVM_AREA = b" LVM2 x[5A%r0N*>"


def _read(blocks: Blocks, offset: int, length: int) -> bytes:
    if offset + length > blocks.size:
        return bytes(length)
    data = bytearray(length)
    try:
        blocks.read_into(offset, memoryview(data))
    except SourceError:
        return bytes(length)
    return bytes(data)


def detect(blocks: Blocks, image_format: str, sector: int = _SECTOR) -> Topology:
    """File systems, volume-manager labels and partition tables on a disk and on its partitions."""
    found = list(_at(blocks, 0))
    for offset in _partitions(blocks):
        found += _at(blocks, offset)
    return Topology(image_format, sector, tuple(found))


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace").strip()


def _uuid(data: bytes) -> str:
    return str(uuid.UUID(bytes=data))


def _at(blocks: Blocks, base: int) -> Iterator[FileSystem]:
    head = _read(blocks, base, 2048)
    ext = head[_EXT_AT:]
    if struct.unpack_from("<H", ext, 56)[0] == _EXT_MAGIC:
        compat, incompat = struct.unpack_from("<II", ext, 92)
        kind = "ext4" if incompat & _EXT_EXTENTS else "ext3" if compat & _EXT_JOURNAL else "ext2"
        yield FileSystem(kind, base, _uuid(ext[104:120]), _text(ext[120:136]))
    if head[:4] == b"XFSB":
        yield FileSystem("xfs", base, _uuid(head[32:48]), _text(head[108:120]))
    if head[:6] == b"LUKS\xba\xbe":
        yield FileSystem("crypto_LUKS", base, _text(head[168:208]))
    if head[512:520] == b"LABELONE":
        yield FileSystem("LVM2_member", base, head[544:576].decode(errors="replace"), _volume_group(blocks, base))
    if base == 0 and head[512:520] == b"EFI PART":
        yield FileSystem("gpt", base, str(uuid.UUID(bytes_le=head[568:584])))
    elif base == 0 and head[510:512] == b"\x55\xaa" and any(head[446 + 16 * n + 4] for n in range(4)):
        yield FileSystem("dos", base, f"{struct.unpack_from('<I', head, 440)[0]:08x}")
    btrfs = _read(blocks, base + _BTRFS_AT, 1024)
    if btrfs[64:72] == b"_BHRfS_M":
        yield FileSystem("btrfs", base, _uuid(btrfs[32:48]), _text(btrfs[299:555]))
    if _read(blocks, base + _PAGE - 10, 10) == b"SWAPSPACE2":
        yield FileSystem("swap", base, _uuid(head[1036:1052]), _text(head[1052:1068]))
    md = _read(blocks, base + 4096, 256)
    if struct.unpack_from("<I", md, 0)[0] == 0xA92B4EFC:
        yield FileSystem("linux_raid_member", base, _uuid(md[16:32]), _text(md[32:64]))


def _volume_group(blocks: Blocks, base: int) -> str:
    """The name of the group that an LVM member belongs to: the first word of its newest metadata (lvm2, format_text/layout.h)."""
    area = _read(blocks, base + _PAGE, _SECTOR)
    if area[4:20] != _LVM_AREA:
        return ""
    start, offset = struct.unpack_from("<Q", area, 24)[0], struct.unpack_from("<Q", area, 40)[0]
    name, brace, _ = _read(blocks, base + start + offset, _SECTOR).partition(b" {")
    return name.decode(errors="replace") if brace and name.isascii() else ""


def _partitions(blocks: Blocks) -> Iterator[int]:
    """Byte offsets of primary partitions: GPT where there is one, else MBR."""
    head = _read(blocks, 0, 1024)
    if head[512:520] == b"EFI PART":
        first, count, size = struct.unpack_from("<QII", head, 584)
        if not 128 <= size <= _PAGE or count > 256:
            return
        table = _read(blocks, first * _SECTOR, count * size)
        for at in range(0, len(table), size):
            if table[at : at + 16] != bytes(16):
                yield struct.unpack_from("<Q", table, at + 32)[0] * _SECTOR
    elif head[510:512] == b"\x55\xaa":
        for n in range(4):
            kind, start = head[446 + 16 * n + 4], struct.unpack_from("<I", head, 446 + 16 * n + 8)[0]
            if kind and start:
                yield start * _SECTOR


def cleanly_unmounted(blocks: Blocks) -> bool:
    """True where the whole disk is an ext file system whose superblock says that nothing has to be recovered."""
    ext = _read(blocks, _EXT_AT, 128)
    if struct.unpack_from("<H", ext, 56)[0] != _EXT_MAGIC:
        return False
    state, incompat = struct.unpack_from("<H", ext, 58)[0], struct.unpack_from("<I", ext, 96)[0]
    return state == _EXT_CLEAN and not incompat & _EXT_RECOVER
