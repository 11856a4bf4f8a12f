"""Comparing contents of megabytes: pytest's own explanation of how two long byte strings differ can take hours."""

from __future__ import annotations

from typing_extensions import Buffer

__all__ = ["equal"]


def equal(found: Buffer, wanted: Buffer) -> None:
    """AssertionError that names the first byte that differs."""
    left, right = memoryview(found).cast("B"), memoryview(wanted).cast("B")
    if left == right:
        return
    if len(left) != len(right):
        raise AssertionError(f"{len(left)} bytes, not {len(right)}")
    step = 4096
    at = next(n for n in range(0, len(left), step) if left[n : n + step] != right[n : n + step])
    at = next(n for n in range(at, at + step) if left[n] != right[n])
    raise AssertionError(f"byte {at} is {left[at]}, not {right[at]}")
