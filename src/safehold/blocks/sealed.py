"""A sealed epoch as a disk that stands still."""

from __future__ import annotations

from collections.abc import Iterator

from safehold.blocks.epochs import Epochs
from safehold.blocks.ids import BlockIds
from safehold.blocks.layers import MISSING, PRESENT, Overlay
from safehold.model.errors import SourceError
from safehold.model.extents import Extent, ExtentKind
from safehold.ports.blocks import Lineage

__all__ = ["SealedDisk"]


class SealedDisk:
    """`ports.blocks.Blocks` of a volume as it was when an epoch was sealed. Blocks that no open epoch changed must not be read: writes go on
    there; `extents` calls them SAME.
    """

    def __init__(
        self,
        epochs: Epochs,
        epoch: int,
        *,
        known: int,
        ids: BlockIds,
    ) -> None:
        """`known` is the length in bytes of the volume's last point, of which the blocks are that did not change; 0 where there was none, and they
        are zeros. `ids` are those of that last point.
        """
        self._volume = epochs.volume
        self._epoch = epoch
        self._dirty = epochs.dirty(epoch)
        self._known = known
        self._rest = ExtentKind.SAME if known else ExtentKind.ZERO
        self._ids = ids

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._volume.size

    def extents(self, since: Lineage | None = None) -> Iterator[Extent]:
        """In whole blocks: what changed as data, or as zeros where it is known; the rest as SAME, or as zeros in a first point."""
        block, size, done = self._volume.block, self.size, 0
        for start, end in self._dirty.runs():
            if start > done:
                yield Extent(done * block, (start - done) * block, self._rest)
            for number in range(start, end):
                low, high = number * block, min((number + 1) * block, size)
                yield Extent(low, high - low, self._kind(number, low, high))
            done = end
        if done * block < size:
            yield Extent(done * block, size - done * block, self._rest)

    def _kind(self, number: int, low: int, high: int) -> ExtentKind:
        overlaid = any(overlay.sectors.any(*self._volume.maps.span(number)) for overlay in self._overlays())
        state = self._volume.maps.states.cells[number]
        if state == MISSING and not overlaid and high <= self._known:
            # Never written since the volume was made of the point: marked only because the map of changes was lost. The last block of a point may
            # be short, and is another where the volume has grown.
            return ExtentKind.SAME
        if state == PRESENT and not overlaid and not any(data for _, _, data in self._volume.data.allocated(low, high)):
            return ExtentKind.ZERO
        return ExtentKind.DATA

    def _overlays(self) -> tuple[Overlay, ...]:
        return tuple(overlay for overlay in self._volume.gate.phase.overlays if overlay.epoch <= self._epoch)

    def known_ids(self, first: int, count: int) -> list[bytes]:
        """See `ports.blocks.IncrementalBlocks`."""
        return self._ids.read(first, count)

    def remember_ids(self, first: int, identities: list[bytes]) -> None:
        """See `ports.blocks.IncrementalBlocks`."""
        self._ids.remember(first, identities)

    def remember_zeros(self, first: int, count: int) -> None:
        """See `ports.blocks.IncrementalBlocks`."""
        self._ids.remember_zeros(first, count)

    def read_into(self, offset: int, buf: memoryview) -> None:
        """SourceError where something is missing and the vault does not give it."""
        try:
            self._volume.read_layers(self._overlays(), offset, buf)
        except OSError as error:
            raise SourceError(
                f"bytes from {offset} cannot be read ({error.strerror})",
                on=str(self._volume.data.path.parent.name),
                remedy="see what the volume says: safehold volume show",
            ) from error
