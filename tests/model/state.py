"""What a vault holds and what its actors know, in a world with one chunk: every pack is a copy of it, and every point needs it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "NOTHING",
    "Prune",
    "Reader",
    "Record",
    "Run",
    "Store",
    "World",
    "Writer",
    "after_a_fence",
    "after_a_stop",
    "start",
]

NOTHING: frozenset[str] = frozenset()


class Record(NamedTuple):
    """The newest gc record. `awaited` is None while nobody listed the sessions that may rely on what is condemned."""

    number: int = 0
    condemned: frozenset[str] = NOTHING
    awaited: frozenset[str] | None = None
    dead: frozenset[str] = NOTHING
    base: frozenset[str] = NOTHING
    absorbed: frozenset[str] = NOTHING


class Run(NamedTuple):
    """An index run: the packs in which it says that the chunk lies. `owner` is the session, or "prune" for a base run."""

    name: str
    owner: str
    packs: frozenset[str]


class Store(NamedTuple):
    """The objects. `late` are puts of writers that the network may carry out a second time; `aged` names dead and absorbed objects that have
    been listed for thirty days by the store's clock.
    """

    packs: frozenset[str]
    runs: frozenset[Run]
    sessions: frozenset[str]
    points: frozenset[str]
    fences: frozenset[str] = NOTHING
    intents: frozenset[str] = NOTHING
    chain: Record = Record()
    aged: frozenset[str] = NOTHING
    late: frozenset[tuple[str, str | Run]] = frozenset()

    @property
    def run_names(self) -> frozenset[str]:
        """What a listing of `index/` shows."""
        return frozenset(run.name for run in self.runs)


class Writer(NamedTuple):
    """One backup. `silent`: it gave no sign of life for 36 hours, because it died or because it stood still."""

    at: str = "W1"
    seen: Record | None = None
    silent: bool = False


class Prune(NamedTuple):
    """One machine that prunes, `round` times so far, and what it holds in memory at its step `at`."""

    at: str = "P1"
    round: int = 0
    record: Record = Record()
    packs: frozenset[str] = NOTHING
    live: bool = False
    chosen: frozenset[str] = NOTHING
    """To be condemned, or dead."""
    runs: frozenset[Run] = frozenset()
    open: frozenset[str] = NOTHING
    base: frozenset[str] = NOTHING
    absorbed: frozenset[str] = NOTHING
    leaving: frozenset[str] = NOTHING
    """Names that leave the lists of the dead and the absorbed."""


class Reader(NamedTuple):
    """One restore: the names of the runs that it listed last, and places it did not try yet."""

    at: str = "R1"
    point: str = ""
    runs: frozenset[str] = NOTHING
    places: frozenset[str] = NOTHING
    again: bool = False


class World(NamedTuple):
    """Everything."""

    store: Store
    writers: tuple[Writer, ...]
    prunes: tuple[Prune, ...]
    readers: tuple[Reader, ...]
    days: int
    """How often thirty days may still pass."""


def start(*, writers: int, prunes: int, readers: int = 0, days: int = 0, late: bool = False) -> World:
    """A vault with one point of an earlier session x0; `late`: its run may be put a second time."""
    run = Run("run-x0", "x0", frozenset({"pack-x0"}))
    first: frozenset[tuple[str, str | Run]] = frozenset({("run", run)} if late else ())
    store = Store(frozenset({"pack-x0"}), frozenset({run}), NOTHING, frozenset({"x0"}), late=first)
    return World(store, (Writer(),) * writers, (Prune(),) * prunes, (Reader(),) * readers, days)


def after_a_stop() -> World:
    """A prune has deleted the pack of x0 and died before the run; x9 has left a pack and died. Thirty days may pass."""
    run = Run("run-x0", "x0", frozenset({"pack-x0"}))
    chain = Record(2, dead=frozenset({"pack-x0"}), absorbed=frozenset({"run-x0"}))
    store = Store(frozenset({"pack-x9"}), frozenset({run}), NOTHING, NOTHING, chain=chain)
    return World(store, (Writer(),), (Prune(),), (), 1)


def after_a_fence() -> World:
    """x1 stood still between its pack and its run, and was fenced; its pack is deleted. Thirty days may pass, and then it goes on."""
    chain = Record(2, dead=frozenset({"pack-x1"}))
    store = Store(frozenset({"pack-x9"}), frozenset(), NOTHING, NOTHING, fences=frozenset({"x1"}), chain=chain)
    return World(store, (Writer("W3 run", None, True), Writer()), (Prune(),), (), 1)
