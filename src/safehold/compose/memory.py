"""The C library's allocator, told to keep what it frees."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 32 * 1024 * 1024
"""Larger than any chunk that the compression library returns: those are then reused instead of mapped and zeroed anew each time."""


def keep_freed_memory() -> None:
    """Let freed blocks of up to 32 MiB be reused by the process. See mallopt(3); does nothing where there is no glibc."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * _LARGEST_BLOCK)
