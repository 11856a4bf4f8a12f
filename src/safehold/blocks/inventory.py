"""Whatever lies below a directory of volumes, read beside the service that has it, or without one."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safehold.blocks.layout import VolumeFiles, VolumeRecord, read_record
from safehold.blocks.recycle_bin import RecycleBin
from safehold.model.errors import FailedError

__all__ = ["Found", "Place", "find_volumes"]

_LOOKS = 10
"""Times that the directory is looked through where volumes come and go meanwhile: one that moved between two looks may have been missed."""


class Place(enum.Enum):
    """Where a volume stands in its life."""

    MADE = enum.auto()
    SERVED = enum.auto()
    BINNED = enum.auto()
    OUTGOING = enum.auto()


@dataclass(frozen=True)
class Found:
    """A volume by the name that operators give it there; `record` is None where it cannot be read."""

    name: str
    called: str
    place: Place
    record: VolumeRecord | None


def find_volumes(root: Path) -> list[Found]:
    """All of them: those in use, being made, deleted, and on their way out. FailedError where the directory cannot be looked through."""
    for _ in range(_LOOKS):
        before = _listed(root)
        found = list(_found(root))
        if _listed(root) == before:
            return found
    raise FailedError("volumes come and go here", on=str(root), remedy="run it again in a moment")


def _listed(root: Path) -> set[str]:
    try:
        return {str(one) for place in (root, RecycleBin(root).place) if place.is_dir() for one in place.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise FailedError(
            f"the volumes of this host cannot be looked at ({error.strerror})",
            on=str(root),
            remedy="run it as their owner",
        ) from error


def _found(root: Path) -> Iterator[Found]:
    bin_ = RecycleBin(root)
    for one in sorted(root.iterdir()) if root.is_dir() else ():
        if one.is_dir() and one != bin_.place:
            made = one.name.startswith(".")
            name = one.name.removeprefix(".").removesuffix(".new") if made else one.name
            yield Found(name, name, Place.MADE if made else Place.SERVED, _record(one))
    for place, entries in ((Place.BINNED, bin_.entries()), (Place.OUTGOING, bin_.outgoing())):
        for entry in entries:
            yield Found(entry.place.name, entry.name, place, entry.record)


def _record(directory: Path) -> VolumeRecord | None:
    try:
        return read_record(VolumeFiles(directory))
    except FailedError:
        return None
