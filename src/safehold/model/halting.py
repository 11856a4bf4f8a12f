"""Waiting that somebody can end."""

from __future__ import annotations

from safehold.model.clock import Clock
from safehold.model.context import CancelToken

__all__ = ["HaltingClock"]


class HaltingClock:
    """Another clock, but for sleeping: that ends with CancelledError once the token is set, so that whoever tries again and again gives up."""

    def __init__(self, inner: Clock, halt: CancelToken) -> None:
        self._inner, self._halt = inner, halt

    def now(self) -> float:
        """The inner one's."""
        return self._inner.now()

    def monotonic(self) -> float:
        """The inner one's."""
        return self._inner.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or less."""
        self._halt.wait(seconds)
        self._halt.check()
