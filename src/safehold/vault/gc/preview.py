"""What a prune would do now, told without writing anything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from safehold.vault.catalogue import Point
from safehold.vault.gc.mark import IdSorter
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.repack import live_in
from safehold.vault.index.rows import Location
from safehold.vault.locate import DomainFinder
from safehold.vault.trust import Chain

__all__ = ["Preview"]


class Preview(Prune):
    """The steps of a prune up to its first change. The report's `condemned` would go, at once where `waiting` is empty; `fenced` would be
    ended, and `moved` are the bytes that would be copied.
    """

    def _attempt(self, chain: Chain) -> bool:
        record = self._record(chain)
        if record.condemned:
            # Somebody began, and the next prune does no more than finish that.
            packs = self._packs()
            chosen = self._mark(chain, frozenset(record.condemned))
            going = packs.keys() & set(record.condemned) - chosen.packs.keys()
            self.report.stored, self.report.live = sum(packs.values()), sum(chosen.packs.values())
            self.report.condemned, self.report.condemned_packs = sum(packs[name] for name in going), len(going)
        else:
            self._condemned(chain)
        self.report.fenced, waiting = self._sessions_by_life(record.awaited)
        self.report.waiting = waiting if self.report.condemned_packs else []
        return True

    @contextlib.contextmanager
    def _room(self, packs: dict[str, int]) -> Iterator[dict[str, int]]:
        yield packs

    def _now(self) -> float:
        return self._vault.listed_time()

    def _move(
        self,
        point: Point,
        packs: frozenset[str],
        live: IdSorter,
        finder: DomainFinder,
        kept: Callable[[bytes, Location], bool],
    ) -> None:
        found = live_in(packs, live, finder.rows(), kept)
        self._emptied |= found.keys()
        self.report.moved += sum(location.stored for rows in found.values() for _, location in rows)
