"""What this machine remembers of each vault, so that a vault that was rolled back is noticed. Can be lost without
harm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from safehold.model.remembered import keep, recall, taking_turns
from safehold.vault.records import OwnerPublic

__all__ = ["Head", "Heads"]


class Head(msgspec.Struct, frozen=True):
    """Of one vault: number and digest of the newest gc record that the chain was followed to, the owner keys met on the way, the point this
    machine committed last, those of its points that disappeared without having been expired, with their resources as far as these are known, and
    the last point that it made of each resource.
    """

    gc: int = -1
    digest: str = ""
    point: str = ""
    missing: dict[str, tuple[str, ...]] = {}
    latest: dict[str, str] = {}
    owners: tuple[OwnerPublic, ...] = ()

    def resources(self, name: str) -> tuple[str, ...]:
        """Those of a point that this machine made; nothing where they are not known."""
        if name == self.point:
            return tuple(resource for resource, made in self.latest.items() if made == name)
        return self.missing.get(name, ())


class Heads:
    """One small file for each vault in a directory of this machine's state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def _path(self, vault: bytes) -> Path:
        return self._directory / f"{vault.hex()}.json"

    def load(self, vault: bytes) -> Head:
        """What is remembered; an unreadable file counts as nothing."""
        return recall(self._path(vault), Head, Head())

    def change(self, vault: bytes, change: Callable[[Head], Head]) -> Head:
        """Remember what `change` makes of what is remembered now, and return it. A machine that cannot remember goes on without."""
        path = self._path(vault)
        with taking_turns(path):
            before = self.load(vault)
            after = change(before)
            if after != before:
                with contextlib.suppress(OSError):
                    keep(path, msgspec.json.encode(after))
        return after
