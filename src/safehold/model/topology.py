"""What lies on a disk and around it, recorded with a point so that a restore can rebuild the same arrangement."""

from __future__ import annotations

import msgspec

__all__ = ["FileSystem", "Topology"]


class FileSystem(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file system, partition table or volume-manager label found by its signature.

    `offset` is in bytes from the start of the disk; `uuid` and `label` as blkid prints them, empty where there are
    none.
    """

    type: str
    offset: int = 0
    uuid: str = ""
    label: str = ""


class Topology(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one disk: its container format (raw, qcow2, device), logical sector size in bytes, and what lies on it."""

    format: str = "raw"
    sector: int = 512
    contents: tuple[FileSystem, ...] = ()
