"""Which file of a volume has the content of which sector."""

from __future__ import annotations

from collections.abc import Iterator

from safehold.blocks.layers import MISSING, PRESENT, DataFile, Overlay, Phase
from safehold.blocks.layout import SECTOR
from safehold.blocks.maps import Maps

__all__ = ["ABSENT", "BASE", "owners", "runs"]

BASE = -1
"""In the data."""
ABSENT = -2
"""Not here."""


def owners(maps: Maps, overlays: tuple[Overlay, ...], block: int, low: int, high: int) -> list[int]:
    """For each sector from `low` to before `high` of a block the overlay's place in the list, newest first, `BASE`, or `ABSENT`. OSError."""
    # Overlays before the data: a fold moves sectors down, and one that was looked for first is found on either side.
    above = [overlay.sectors.get(low, high) for overlay in overlays]
    state = maps.states.cells[block]
    if state == PRESENT:
        found = [BASE] * (high - low)
    elif state == MISSING:
        found = [ABSENT] * (high - low)
    else:
        found = [BASE if cell else ABSENT for cell in maps.sectors.get(low, high)]
    for place in range(len(above) - 1, -1, -1):
        if above[place].count(0) != high - low:
            found = [place if cell else owner for cell, owner in zip(above[place], found, strict=True)]
    return found


def runs(
    maps: Maps, data: DataFile, phase: Phase, block_size: int, offset: int, length: int
) -> Iterator[tuple[int, bool, bool]]:
    """The range in runs of (length, hole, zero): holes are where nothing was ever written or was discarded; missing blocks count as data. OSError."""
    end = offset + length
    while offset < end:
        block = offset // block_size
        stop = min(end, (block + 1) * block_size)
        low, high = offset // SECTOR, -(-stop // SECTOR)
        if maps.states.cells[block] != PRESENT or phase.shadows(low, high):
            yield stop - offset, False, False
        else:
            for start, high_end, has_data in data.allocated(offset, stop):
                yield high_end - start, not has_data, not has_data
        offset = stop
