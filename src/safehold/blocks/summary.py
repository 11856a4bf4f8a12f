"""All that the maps of a volume say, as the changes that lead there: what a log begins with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from safehold.blocks.checkpoint import Change, ChangeKind
from safehold.blocks.layers import PARTIAL, Phase
from safehold.blocks.maps import BlockMap, Maps

__all__ = ["block_states", "everything"]

_PIECE = 1 << 16
_RUN = re.compile(rb"(.)\1*", re.DOTALL)


def block_states(states: BlockMap) -> Iterator[Change]:
    """The states of all blocks, in runs."""
    for low in range(0, states.length, _PIECE):
        cells = states.cells[low : min(low + _PIECE, states.length)]
        if cells.count(cells[0]) == len(cells):
            # As nearly all are.
            yield Change(ChangeKind.STATE, 0, low, len(cells), cells[0])
            continue
        for run in _RUN.finditer(cells):
            yield Change(ChangeKind.STATE, 0, low + run.start(), run.end() - run.start(), cells[run.start()])


def everything(maps: Maps, phase: Phase, sealed: Iterable[int]) -> Iterator[Change]:
    """The state of every block, the sectors of partial ones and of overlays, and the `sealed` epochs that survive a power loss."""
    for change in block_states(maps.states):
        yield change
        if change.value == PARTIAL:
            for block in range(change.start, change.start + change.cells):
                low, high = maps.span(block)
                for start, end in maps.sectors.runs(low, high):
                    yield Change(ChangeKind.SECTOR, 0, start, end - start, 1)
    for overlay in phase.overlays:
        # An overlay that has nothing is named too: it is in force.
        yield Change(ChangeKind.OVERLAY, overlay.epoch, 0, 0, 0)
        for start, end in overlay.sectors.runs():
            yield Change(ChangeKind.OVERLAY, overlay.epoch, start, end - start, 1)
    for epoch in sealed:
        yield Change(ChangeKind.SEALED, epoch, 0, 0, 1)
