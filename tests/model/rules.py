"""The rules of the protocol, one method each, so that a mistake is a subclass that lacks one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.state import NOTHING, Prune, Reader, Record, Run, Store, Writer

__all__ = ["ENDED", "Bounds", "Rules"]

ENDED = ("done", "fenced", "withdrawn")
"""Where a writer is that takes no more steps."""


@dataclass(frozen=True)
class Bounds:
    """What may happen in a world, and how often."""

    rounds: int = 1
    """Prunes that one machine runs."""
    late: frozenset[str] = NOTHING
    """Kinds of objects of which a put may be carried out twice."""
    silences: bool = True
    failures: bool = False
    """Backups may fail, and end their sessions themselves."""
    lost_answers: bool = False
    moves: bool = False
    expires: frozenset[str] = frozenset({"x0"})
    clocks: tuple[int, ...] = (40, -40)
    """Days by which the clocks of the machines that prune are ahead of the store's."""


class Rules:
    """What each actor goes by, in a world with these bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def counting(self, store: Store) -> frozenset[str]:
        """Points that are there for readers and for prune."""
        return store.points - store.intents

    def first(self) -> str:
        """A session is announced before its view is taken."""
        return "W1"

    def may_begin(self, store: Store) -> bool:
        """Backups never wait for prune."""
        return True

    def unusable(self, record: Record) -> frozenset[str]:
        """Packs that nobody may deduplicate against."""
        return record.condemned | record.dead

    def believed(self, store: Store, record: Record) -> Iterator[Run]:
        """Runs that a writer deduplicates by."""
        for run in store.runs:
            if run.owner == "prune":
                if run.name in record.base:
                    yield run
            elif run.owner not in store.fences and run.name not in record.absorbed:
                yield run

    def can_commit(self, store: Store, sid: str) -> bool:
        """Puts are create-only: a point does not replace a fence."""
        return sid not in store.fences

    def may_retry(self, store: Store, sid: str) -> bool:
        """A commit is tried again only while the session is there."""
        return sid in store.sessions

    def may_withdraw(self, at: str) -> bool:
        """A session is withdrawn by its own maker only before it tried to commit."""
        return at in ("W2 chain", "W2 list", "W3 pack", "W3 run", "W4")

    def succeeds(self, store: Store, record: Record) -> bool:
        """A gc record can be created."""
        return store.chain == record

    def is_dead(self, writer: Writer, clock: int) -> bool:
        """A session that can be ended; `clock` is how many days this machine's clock is ahead."""
        return writer.silent

    def waits_for(self, record: Record, open_now: frozenset[str]) -> frozenset[str]:
        """Sessions that may rely on what is condemned."""
        return open_now if record.awaited is None else open_now & record.awaited

    def awaited_at_first(self, store: Store) -> frozenset[str] | None:
        """Sessions named by the record that condemns."""
        return None

    def spares(self, live: bool, places: frozenset[str], condemned: frozenset[str]) -> frozenset[str]:
        """Condemned packs of which P5 is to spare one."""
        return places if live and not places - condemned else NOTHING

    def present(self, store: Store, prune: Prune) -> frozenset[str]:
        """Packs by which P5 judges runs: listed after them."""
        return store.packs

    def leaving(self, store: Store, record: Record, clock: int) -> frozenset[str]:
        """Names that P6 takes from the lists: after thirty days of the store's clock, and once their objects are gone."""
        return store.aged - store.packs - store.run_names

    def outlives(self, store: Store, sid: str) -> Store:
        """Expiry deletes a point; its intent stays."""
        return store._replace(points=store.points - {sid})

    def ended(self, store: Store, sids: frozenset[str]) -> Store:
        """P7 deletes the sessions that ended; fences stay."""
        return store._replace(sessions=store.sessions - sids)

    def looks_again(self, reader: Reader, store: Store) -> bool:
        """A reader that found nothing lists the runs again as long as there are others."""
        return store.run_names != reader.runs
