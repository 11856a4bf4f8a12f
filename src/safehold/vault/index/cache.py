"""The tables of one dedup domain on this machine: every index run is fetched and opened once, and tables of like
size are merged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from safehold.model.context import Context
from safehold.model.shown import in_words
from safehold.vault.index.table import BrokenTable, SortedTable, merge_tables, table_of
from safehold.vault.index.view import ChunkIndex

__all__ = ["IndexCache"]

_RATIO = 4
"""A table is merged into the one before it unless that one is this many times as large: about ten tables for 100
million rows.
"""

_MOST_UNMERGED = 96
"""Tables that wait to be merged: each costs a descriptor."""

_SUFFIX = ".table"


class _Pack(Protocol):
    @property
    def name(self) -> str: ...


class IndexCache:
    """Use as a context manager: it holds a lock, so that processes on one cache take turns in changing it."""

    def __init__(self, directory: Path, ctx: Context) -> None:
        """A directory that cannot be used, or has no room, is replaced by a temporary one for this run, with a warning."""
        self._ctx = ctx
        self._stack = contextlib.ExitStack()
        self._directory = directory
        self._tables: list[SortedTable] = []
        self._spill = directory
        self._lasting = True
        self._settled = 0

    def __enter__(self) -> IndexCache:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._go_elsewhere(error)
            return self
        self._stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                self._tables.append(SortedTable.open(path))
            except BrokenTable as error:
                self._ctx.progress.note(f"a damaged index cache table is dropped ({error})")
                path.unlink(missing_ok=True)
        self._settled = len(self._tables)
        return self

    def _go_elsewhere(self, error: OSError) -> None:
        """Tables from here on last for this run only; those that are open stay so."""
        self._ctx.progress.warn(
            f"the index cache cannot be used ({in_words(error)}): the index is read again on every run"
        )
        self._spill = Path(tempfile.gettempdir())
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="safehold-")))
        self._lasting = False

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def keep_only(self, runs: Sequence[str]) -> None:
        """Drop tables that rest on a run that is not among `runs`: what is no longer listed does not count."""
        listed = set(runs)
        for table in list(self._tables):
            if not listed.issuperset(table.runs):
                self._drop(table)

    def _drop(self, table: SortedTable) -> None:
        self._tables.remove(table)
        (self._directory / _name(table.runs)).unlink(missing_ok=True)

    def __contains__(self, run: str) -> bool:
        return any(run in table.runs for table in self._tables)

    def absorb(self, run: str, packs: Sequence[_Pack], rows: bytes | bytearray) -> None:
        """Take in a run's rows, which are sorted by chunk id."""
        runs = (run,)
        names = [pack.name for pack in packs]
        wanted = [True] * len(names)
        try:
            table = table_of(self._directory, runs, names, rows, wanted, _name(runs))
        except OSError as error:
            if not self._lasting:
                raise
            self._go_elsewhere(error)
            table = table_of(self._directory, runs, names, rows, wanted, _name(runs))
        self._tables.append(table)
        if len(self._tables) - self._settled >= _MOST_UNMERGED:
            self._settle()

    def _settle(self) -> None:
        """Merge tables of like size, as many as there are in one go: a machine that reads the index of a large vault for the first time writes
        each row twice, and not once for each doubling.
        """
        self._tables.sort(key=lambda table: -table.rows)
        first = len(self._tables)
        after = 0
        for position in range(len(self._tables) - 1, -1, -1):
            if self._tables[position].rows < _RATIO * max(1, after):
                first = position
            after += self._tables[position].rows
        group = self._tables[first:]
        # Without room for one large table the small ones do as well.
        with contextlib.suppress(OSError):
            if len(group) > 1:
                merged = merge_tables(self._directory, group, _name([run for table in group for run in table.runs]))
                for table in group:
                    self._drop(table)
                self._tables.append(merged)
        self._settled = len(self._tables)

    def index(self) -> ChunkIndex:
        """Everything absorbed. The tables stay open after the cache's lock is given back, whatever happens to their
        names.
        """
        self._settle()
        return ChunkIndex(self._tables, self._spill)


def _name(runs: Sequence[str]) -> str:
    """A file name that tells which runs a table holds."""
    return blake3("\n".join(runs).encode()).hexdigest()[:32] + _SUFFIX
