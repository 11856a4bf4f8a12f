"""A dictionary that this machine remembers in one file, sealed under a key of the owner's. Whoever uses it can do without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from safehold.model.errors import DamageError
from safehold.model.remembered import keep, taking_turns
from safehold.vault.sealing import open_body, seal_body

__all__ = ["SealedCache"]

_T = TypeVar("_T")


class SealedCache(Generic[_T]):
    """Entries of one type by object name."""

    def __init__(self, path: Path, vault: bytes, key: bytes, type_: type[_T]) -> None:
        self._path, self._vault, self._key = path, vault, key
        self._name = f"{path.name} cache"
        self._decoder = msgspec.msgpack.Decoder(dict[str, type_])  # type: ignore[valid-type]

    def load(self) -> dict[str, _T]:
        """By object name; anything unreadable counts as empty."""
        try:
            return self._decoder.decode(open_body(self._key, self._vault, self._name, self._path.read_bytes()))
        except (OSError, DamageError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}

    def update(self, change: Callable[[dict[str, _T]], dict[str, _T]]) -> None:
        """Replace the file by what `change` makes of what is in it now, while nobody else does."""
        with taking_turns(self._path):
            before = self.load()
            after = change(before)
            if after != before:
                self.store(after)

    def store(self, entries: dict[str, _T]) -> None:
        """Replace the file; a machine without room for it goes on without."""
        sealed = seal_body(self._key, self._vault, self._name, msgspec.msgpack.encode(entries))
        with contextlib.suppress(OSError):
            keep(self._path, sealed)
