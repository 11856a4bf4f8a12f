"""Writing to a file all that there is to write."""

from __future__ import annotations

import os

__all__ = ["write_all"]


def write_all(fd: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it at an offset: that a disk becomes full, or a limit, makes a write short first, and is an error with the next. OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        offset, view = offset + done, view[done:]
