"""What a backup of any kind of content comes to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoredContent"]


@dataclass(frozen=True, slots=True)
class StoredContent:
    """The root and levels of what was stored, its logical bytes, the bytes that were read for it, and for a tree its entries."""

    root: bytes
    levels: int
    size: int
    read: int
    entries: int = 0
