"""A clock that stands until it is moved."""

from __future__ import annotations


class FakeClock:
    def __init__(self, time: float = 1_795_000_000.0) -> None:
        self.time = time

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


__all__ = ["FakeClock"]
