"""The protocol with one rule left out or turned round, and a world that is large enough to show what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.protocol import Protocol
from tests.model.rules import Bounds
from tests.model.state import (
    NOTHING,
    Prune,
    Reader,
    Record,
    Run,
    Store,
    World,
    Writer,
    after_a_fence,
    after_a_stop,
    start,
)

__all__ = ["MISTAKES", "Mistake"]

ALL = frozenset({"x0", "x1", "x2"})
OLD_PUTS = frozenset({"run"})


class _CondemnedIsUsed(Protocol):
    def unusable(self, record: Record) -> frozenset[str]:
        return record.dead


class _DeadAndFencedAreUsed(Protocol):
    def unusable(self, record: Record) -> frozenset[str]:
        return record.condemned

    def believed(self, store: Store, record: Record) -> Iterator[Run]:
        return super().believed(store._replace(fences=NOTHING), record)


class _NoWaiting(Protocol):
    def waits_for(self, record: Record, open_now: frozenset[str]) -> frozenset[str]:
        return NOTHING


class _WaitsForAll(Protocol):
    def waits_for(self, record: Record, open_now: frozenset[str]) -> frozenset[str]:
        return open_now


class _NamedBeforeCondemning(Protocol):
    def awaited_at_first(self, store: Store) -> frozenset[str] | None:
        # What was open when the record before was made, which is what that record tells.
        return NOTHING


class _NoSecondMark(Protocol):
    def spares(self, live: bool, places: frozenset[str], condemned: frozenset[str]) -> frozenset[str]:
        return NOTHING


class _ViewBeforeSession(Protocol):
    def first(self) -> str:
        return "W2"


class _ChainOverwritten(Protocol):
    def succeeds(self, store: Store, record: Record) -> bool:
        return True


class _CommitOverFence(Protocol):
    def can_commit(self, store: Store, sid: str) -> bool:
        return True


class _FencesGo(Protocol):
    def ended(self, store: Store, sids: frozenset[str]) -> Store:
        return store._replace(sessions=store.sessions - sids, fences=store.fences - sids)


class _Lists(Protocol):
    def _listed(self, store: Store, record: Record) -> frozenset[str]:
        return record.dead | record.condemned | record.absorbed | store.run_names


class _ListsAreShort(_Lists):
    def leaving(self, store: Store, record: Record, clock: int) -> frozenset[str]:
        return self._listed(store, record)


class _ListsGoByTheClientsClock(_Lists):
    def leaving(self, store: Store, record: Record, clock: int) -> frozenset[str]:
        return self._listed(store, record) if clock >= 30 else store.aged - store.packs - store.run_names


class _ListsForgetWhatIsThere(Protocol):
    def leaving(self, store: Store, record: Record, clock: int) -> frozenset[str]:
        return store.aged


class _PatienceGoesByTheClientsClock(Protocol):
    def is_dead(self, writer: Writer, clock: int) -> bool:
        return writer.silent or clock >= 2


class _SilenceGoesByTheClientsClock(Protocol):
    def is_dead(self, writer: Writer, clock: int) -> bool:
        return writer.silent and clock >= 0


class _RunsOfTheFencedCount(Protocol):
    def believed(self, store: Store, record: Record) -> Iterator[Run]:
        return super().believed(store._replace(fences=NOTHING), record)


class _IntentsGoWithThePoint(Protocol):
    def outlives(self, store: Store, sid: str) -> Store:
        return store._replace(points=store.points - {sid}, intents=store.intents - {sid})


class _PacksBeforeRuns(Protocol):
    def present(self, store: Store, prune: Prune) -> frozenset[str]:
        return prune.packs


class _OneMoreLook(Protocol):
    def looks_again(self, reader: Reader, store: Store) -> bool:
        return not reader.again


class _WithdrawsAfterCommitting(Protocol):
    def may_withdraw(self, at: str) -> bool:
        return super().may_withdraw(at) or at in ("W4 again", "W4 session", "W4 last")


class _BackupsWait(Protocol):
    def may_begin(self, store: Store) -> bool:
        return not store.chain.condemned


@dataclass(frozen=True)
class Mistake:
    """A protocol that lacks a rule; `tells` is what is found, in the words of the judge."""

    name: str
    protocol: type[Protocol]
    world: World
    bounds: Bounds
    tells: str


_ONE = start(writers=1, prunes=1)
_PLAIN = Bounds()
_LATE = Bounds(late=OLD_PUTS)
_LOST = "has lost the chunk"
_FAILED = "a reader of"
_STAYS = "garbage stays"

MISTAKES = (
    Mistake("condemned packs are deduplicated against", _CondemnedIsUsed, _ONE, _PLAIN, _LOST),
    Mistake("neither dead packs nor fences are heeded", _DeadAndFencedAreUsed, after_a_fence(), _PLAIN, _LOST),
    Mistake("sessions are not waited for", _NoWaiting, _ONE, _PLAIN, _LOST),
    Mistake("all sessions are waited for, however young", _WaitsForAll, _ONE, _PLAIN, _STAYS),
    Mistake(
        "the sessions to wait for are listed before the packs are condemned",
        _NamedBeforeCondemning,
        _ONE,
        _PLAIN,
        _LOST,
    ),
    Mistake("points are not looked at again", _NoSecondMark, _ONE, _PLAIN, _LOST),
    Mistake("the view is taken before the session is announced", _ViewBeforeSession, _ONE, _PLAIN, _LOST),
    Mistake("the chain is overwritten", _ChainOverwritten, start(writers=1, prunes=2), _PLAIN, _LOST),
    Mistake("a commit overwrites its fence", _CommitOverFence, _ONE, _PLAIN, _LOST),
    Mistake("fences go with their sessions", _FencesGo, _ONE, _PLAIN, _LOST),
    Mistake("dead names leave the list at once", _ListsAreShort, start(writers=1, prunes=1, late=True), _LATE, _LOST),
    Mistake(
        "names leave the lists by the clock of the machine that prunes",
        _ListsGoByTheClientsClock,
        start(writers=1, prunes=1, late=True),
        _LATE,
        _LOST,
    ),
    Mistake(
        "names leave the lists while their objects are there",
        _ListsForgetWhatIsThere,
        after_a_stop(),
        _PLAIN,
        _LOST,
    ),
    Mistake(
        "patience goes by a clock that is ahead", _PatienceGoesByTheClientsClock, _ONE, _PLAIN, "was taken for dead"
    ),
    Mistake(
        "silence goes by a clock that is behind", _SilenceGoesByTheClientsClock, _ONE, Bounds(clocks=(-40,)), _STAYS
    ),
    Mistake(
        "runs of fenced sessions are deduplicated by",
        _RunsOfTheFencedCount,
        after_a_fence(),
        _PLAIN,
        _LOST,
    ),
    Mistake(
        "the intent to expire goes with the point",
        _IntentsGoWithThePoint,
        _ONE,
        Bounds(expires=ALL, late=frozenset({"point"})),
        _LOST,
    ),
    Mistake(
        "packs are listed before the runs that name them",
        _PacksBeforeRuns,
        start(writers=1, prunes=1, readers=1),
        _PLAIN,
        _FAILED,
    ),
    Mistake(
        "a reader looks again but once",
        _OneMoreLook,
        start(writers=0, prunes=1, readers=1),
        Bounds(rounds=2, moves=True, expires=NOTHING),
        _FAILED,
    ),
    Mistake(
        "a session is withdrawn after it tried to commit",
        _WithdrawsAfterCommitting,
        _ONE,
        Bounds(failures=True, late=frozenset({"point"}), lost_answers=True),
        _LOST,
    ),
    Mistake("backups wait for a prune to end", _BackupsWait, _ONE, _PLAIN, "has to wait"),
)
