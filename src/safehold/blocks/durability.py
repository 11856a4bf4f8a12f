"""What of a volume's writes is durable: flushes, and the changes of the maps that wait for one."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from safehold.blocks.checkpoint import Change, ChangeKind, CheckpointLog, NoRoom
from safehold.blocks.layers import DataFile, Gate
from safehold.blocks.maps import Maps
from safehold.blocks.summary import everything
from safehold.blocks.troubles import Doing, Told, Troubles

__all__ = ["Durability", "unbound"]


def unbound(lose: Callable[[OSError], None]) -> Callable[[OSError], None]:
    """A method, without referring to its object: in a circle nothing is closed before the garbage collector comes along."""
    method = weakref.WeakMethod(lose)

    def call(error: OSError) -> None:
        there = method()
        if there is not None:
            there(error)

    return call


class Durability:
    """Of one volume. Thread-safe."""

    def __init__(
        self,
        data: DataFile,
        maps: Maps,
        gate: Gate,
        log: CheckpointLog,
        troubles: Troubles,
        lose: Callable[[OSError], None],
    ) -> None:
        """`lose` is called where something that was written is lost: nothing is made durable any more."""
        self._data, self._maps, self._gate, self._log = data, maps, gate, log
        self._troubles, self._lose = troubles, lose
        self.changes: deque[Change] = deque()
        """Changes of the maps that wait for a flush."""
        self.settled: set[int] = set()
        """Sealed epochs that survive a power loss."""
        self._lost = False
        self._flushing = threading.Lock()
        self._asked = self._flushed = 0

    def note(self, changes: list[Change]) -> None:
        """Have changes of the maps written with the next flush."""
        for change in changes:
            if change.kind is ChangeKind.SEALED:
                self.settled.add(change.epoch)
            elif change.kind is ChangeKind.DRAINED:
                self.settled.discard(change.epoch)
        self.changes.extend(changes)

    def flush(self) -> None:
        """See `ports.export.Export`. Those who ask at once share one. NoRoom may be over later; after any other OSError there is only EROFS."""
        with self._gate.lock:
            self._asked += 1
            ticket = self._asked
        with self._flushing:
            if self._flushed >= ticket:
                return
            with self._gate.lock:
                goal = self._asked
            try:
                self._make_durable()
            except OSError as error:
                self._troubles.met(Doing.FLUSHING, error)
                raise
            self._flushed = goal
        if self._troubles.now:
            self._troubles.passed(Doing.FLUSHING)

    def prove(self) -> None:
        """Have the disk take the content and the maps, whatever is not in the log yet. OSError as for `failing`."""
        with self._flushing, self.failing():
            self._sync()
            phase = self._gate.phase
            for blocks in (self._maps.states, *phase.held):
                blocks.sync()
            for sectors in (self._maps.sectors, *(overlay.sectors for overlay in phase.overlays)):
                sectors.sync()

    def _sync(self) -> None:
        self._data.sync()
        for overlay in self._gate.phase.overlays:
            overlay.file.sync()

    def _make_durable(self) -> None:
        if self._lost:
            raise Told(errno.EROFS, os.strerror(errno.EROFS))
        # Before the changes are taken: what a map is read as halfway through a change, the change makes good.
        long = self._log.long
        fresh = self._log.anew(everything(self._maps, self._gate.phase, sorted(self.settled))) if long else None
        # Only what was there before the data is synced: its data is in the page cache by now.
        changes = [self.changes.popleft() for _ in range(len(self.changes))]
        with self.failing():
            self._sync()
            if fresh is not None and fresh.take_over(self._log.path, changes):
                self._log = fresh
            else:
                try:
                    self._log.append(changes)
                except NoRoom:
                    self.changes.extendleft(reversed(changes))
                    raise

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An OSError in here means that something written before is lost."""
        try:
            yield
        except NoRoom:
            raise
        except OSError as error:
            self._lost = True
            self._lose(error)
            raise Told(error.errno, error.strerror) from error
