"""Volumes that were deleted, below the directory of all volumes: those that can be taken back, and what is on its way out for good.

What lies in the bin under a plain name can be taken back. What goes for good is first renamed to a name with a dot: from there on it is
no volume any more, whatever becomes of its files and whenever the service is killed, and what a kill has left is known by that name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safehold.blocks.layout import VolumeFiles, VolumeRecord, read_record, sync_directory
from safehold.blocks.names import DELETED
from safehold.model.errors import FailedError

__all__ = ["Deleted", "RecycleBin"]


@dataclass(frozen=True)
class Deleted:
    """One volume in the bin. `record` is None where it cannot be read; `problem` says why then, and `when` is about when it was deleted."""

    place: Path
    record: VolumeRecord | None
    when: float
    problem: str = ""

    @property
    def name(self) -> str:
        """What the volume was called."""
        return self.place.name.lstrip(".").rpartition(".")[0]

    def called(self, name: str) -> bool:
        """True where an operator may mean it by that name: the volume's, or its own in the bin, which no other has."""
        return name in (self.name, self.place.name)


class RecycleBin:
    """The bin of one directory of volumes. Not thread-safe: its users see to it that nobody takes back what another deletes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = root / DELETED

    def make(self) -> Path:
        """Have the bin there; returns where. It is made beforehand, as who deletes to make room may have none for that. OSError."""
        self.place.mkdir(exist_ok=True, mode=0o700)
        return self.place

    def entries(self) -> list[Deleted]:
        """What can be taken back, by name. One that is damaged is among them, and keeps nobody from the others."""
        return [one for one in self._all() if not one.place.name.startswith(".")]

    def outgoing(self) -> list[Deleted]:
        """What is to go for good, and was left on the way."""
        return [one for one in self._all() if one.place.name.startswith(".")]

    def put(self, directory: Path, token: str) -> Path:
        """Have a volume's directory in the bin, durably; returns where it lies. `token` tells it from others of its name. OSError."""
        place = self.make() / f"{directory.name}.{token}"
        # Beforehand, as nothing else says when it came there where its record cannot be read, or cannot be written for want of room.
        with contextlib.suppress(OSError):
            os.utime(directory)
        return self._move(directory, place)

    def take(self, entry: Deleted) -> Path:
        """The directory of what is taken back, among the volumes again. OSError."""
        return self._move(entry.place, self._root / entry.name)

    def cast_out(self, directory: Path, name: str) -> None:
        """Have what was to be a volume of that name go for good: it never was one. OSError."""
        self._move(directory, self.make() / f".{name}.{os.urandom(4).hex()}")

    def expel(self, entry: Deleted) -> Deleted:
        """From here on it cannot be taken back. OSError."""
        place = self._move(entry.place, self.place / f".{entry.place.name}")
        return Deleted(place, entry.record, entry.when, entry.problem)

    def readmit(self, entry: Deleted) -> None:
        """What was expelled, and is whole, can be taken back again. OSError."""
        self._move(entry.place, self.place / entry.place.name.lstrip("."))

    def destroy(self, entry: Deleted) -> None:
        """Give the space of what was expelled back. OSError; what is left then is `outgoing`."""
        shutil.rmtree(entry.place)

    def _move(self, old: Path, new: Path) -> Path:
        os.replace(old, new)
        for directory in {new.parent, old.parent}:
            sync_directory(directory)
        return new

    def _all(self) -> Iterator[Deleted]:
        for place in sorted(self.place.iterdir()) if self.place.is_dir() else ():
            # Another may be at its end at this moment.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                changed = place.stat().st_mtime
                if not place.is_dir():
                    continue
                try:
                    record = read_record(VolumeFiles(place))
                except FailedError as error:
                    yield Deleted(place, None, changed, error.what)
                else:
                    yield Deleted(place, record, max(record.deleted, changed))
