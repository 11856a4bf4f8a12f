"""How a resource was made quiet, recorded with a point."""

from __future__ import annotations

import msgspec

__all__ = ["Quieted"]


class Quieted(msgspec.Struct, frozen=True, omit_defaults=True):
    """One bracket around a capture: what it was (`unmount:/srv`), what it vouched for, and the pause in seconds that was `expected` of it.

    Times are seconds since 1970 by this machine's clock: `entering` from the beginning of making quiet until it was, `leaving` from the
    beginning of letting go until it was done.
    """

    bracket: str
    achieved: str
    expected: float
    entering: tuple[float, float]
    leaving: tuple[float, float]

    @property
    def pause(self) -> float:
        """Seconds for which whoever uses the resource may have had to wait."""
        return self.leaving[1] - self.entering[0]
