"""Runs of bytes of a disk."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Extent", "ExtentKind"]


class ExtentKind(enum.Enum):
    """What is known of a run of bytes without reading it."""

    DATA = "data"
    ZERO = "zero"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at byte `offset`; lengths are positive, extents of one disk are in order and do not overlap."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length
