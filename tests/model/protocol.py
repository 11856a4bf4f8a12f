"""The protocol of docs/format.md as steps of actors, each a call to the store, or a few that follow each other at once.

A machine that dies needs no step of its own: in some history it takes none any more. A prune that dies begins anew, as another machine does.
What the steps go by is in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.model.rules import ENDED, Rules
from tests.model.state import NOTHING, Prune, Reader, Record, Run, Store, World

__all__ = ["Protocol", "names"]

Steps = Iterator[tuple[str, World]]
Late = frozenset[tuple[str, "str | Run"]]
After = Callable[..., tuple[str, World]]


class Protocol(Rules):
    """What can happen next in a world."""

    def steps(self, world: World) -> Steps:
        """Everything that can happen next."""
        for number in range(len(world.writers)):
            yield from self.writer(world, number)
            yield from self.failure(world, number)
            yield from self.silence(world, number)
        for number in range(len(world.prunes)):
            yield from self.prune(world, number)
        for number in range(len(world.readers)):
            yield from self.reader(world, number)
        yield from self.expiry(world)
        yield from self.network(world)

    def _late(self, store: Store, kind: str, what: str | Run) -> Late:
        return store.late | {(kind, what)} if kind in self.bounds.late else store.late

    def writer(self, world: World, number: int) -> Steps:
        """W1 to W4 of session x1, x2, …"""
        store, writer = world.store, world.writers[number]
        sid, pack, at = f"x{number + 1}", f"pack-x{number + 1}", writer.at
        run = Run(f"run-x{number + 1}", sid, frozenset({pack}))

        def after(words: str, changed: Store, at: str, seen: Record | None = None) -> tuple[str, World]:
            now = writer._replace(at=at, seen=seen)
            writers = (*world.writers[:number], now, *world.writers[number + 1 :])
            return f"{sid} {words}", world._replace(store=changed, writers=writers)

        if at == "W1":
            if not self.may_begin(store):
                return
            if self.first() == "W1":
                yield self._announce(after, store, sid, "W2 chain")
            else:
                yield after("reads the newest gc record", store, "W2 list", store.chain)
        elif at == "W2 chain":
            yield after("reads the newest gc record (W2)", store, "W2 list", store.chain)
        elif at == "W2 list":
            assert writer.seen is not None
            told = frozenset[str]().union(*(one.packs for one in self.believed(store, writer.seen)))
            if told - self.unusable(writer.seen):
                yield after("finds the chunk in its view and relies on it (W2)", store, self._viewed("W4"))
            yield after("is to store the chunk itself", store, self._viewed("W3 pack"))
        elif at.startswith("W1 then "):
            yield self._announce(after, store, sid, at.removeprefix("W1 then "))
        elif at == "W3 pack":
            changed = store._replace(packs=store.packs | {pack}, late=self._late(store, "pack", pack))
            yield after("puts its pack (W3)", changed, "W3 run")
        elif at == "W3 run":
            yield after(
                "puts its run (W3)",
                store._replace(runs=store.runs | {run}, late=self._late(store, "run", run)),
                "W4",
            )
        elif at in ("W4", "W4 last"):
            yield from self._commit(after, store, sid, at)
        elif at == "W4 again":
            if sid in store.points:
                yield after("finds its point: committed", store, "done")
            elif sid in store.fences:
                yield after("finds a fence", store, "fenced")
            else:
                yield after("does not find its point", store, "W4 session")
        elif at == "W4 session":
            if self.may_retry(store, sid):
                yield after("may try again", store, "W4 last")
            else:
                yield after("finds its session gone and gives up", store, "fenced")

    def _viewed(self, at: str) -> str:
        return at if self.first() == "W1" else f"W1 then {at}"

    def _announce(self, after: After, store: Store, sid: str, at: str) -> tuple[str, World]:
        changed = store._replace(sessions=store.sessions | {sid}, late=self._late(store, "session", sid))
        return after("announces its session (W1)", changed, at)

    def _commit(self, after: After, store: Store, sid: str, at: str) -> Steps:
        if not self.can_commit(store, sid):
            yield after("finds a fence and fails (W4)", store, "fenced")
            return
        late = self._late(store, "point", sid)
        done = store._replace(points=store.points | {sid}, fences=store.fences - {sid}, late=late)
        yield after("commits (W4)", done, "done")
        if at == "W4" and self.bounds.lost_answers:
            yield after("commits (W4), and the answer is lost", done, "W4 again")
            yield after("asks to commit (W4), and the network keeps the request", store._replace(late=late), "W4 again")

    def failure(self, world: World, number: int) -> Steps:
        """A backup fails, and its maker ends its session."""
        writer, sid = world.writers[number], f"x{number + 1}"
        if self.bounds.failures and sid in world.store.sessions and self.may_withdraw(writer.at):
            writers = (
                *world.writers[:number],
                writer._replace(at="withdrawn", seen=None),
                *world.writers[number + 1 :],
            )
            store = world.store._replace(sessions=world.store.sessions - {sid})
            yield f"{sid} fails and withdraws its session", world._replace(store=store, writers=writers)

    def silence(self, world: World, number: int) -> Steps:
        """A writer stands still for long, or for ever."""
        writer = world.writers[number]
        if self.bounds.silences and not writer.silent and writer.at not in ("W1", *ENDED):
            writers = (*world.writers[:number], writer._replace(silent=True), *world.writers[number + 1 :])
            yield f"nothing is heard of x{number + 1} for 36 hours", world._replace(writers=writers)

    def prune(self, world: World, number: int) -> Steps:
        """P1 to P7 of one machine."""
        prune = world.prunes[number]
        if prune.round >= self.bounds.rounds:
            return
        again = Prune(round=prune.round + 1)
        for words, store, after in self._prune(world, number, prune, again):
            yield f"prune {number + 1} {words}", _with_prune(world, store, number, after)
        if prune.at != "P1":
            yield f"prune {number + 1} dies", _with_prune(world, world.store, number, again)

    def _prune(self, world: World, number: int, prune: Prune, again: Prune) -> Iterator[tuple[str, Store, Prune]]:
        store, record, at = world.store, prune.record, prune.at
        clock = self.bounds.clocks[number % len(self.bounds.clocks)]
        if at == "P1":
            after = "P4 sessions" if store.chain.condemned else "P2 packs"
            yield "reads the newest gc record (P1)", store, prune._replace(at=after, record=store.chain)
        elif at == "P2 packs":
            yield "lists the packs (P2)", store, prune._replace(at="P2 points", packs=store.packs)
        elif at == "P2 points":
            live = bool(self.counting(store))
            yield "lists the points (P2)", store, prune._replace(at="P2 runs", live=live)
        elif at == "P2 runs":
            yield from self._mark(store, number, prune, again)
        elif at == "P2 base":
            base = f"moves-{number + 1}.{prune.round}"
            run = Run(base, "prune", prune.open)
            yield (
                "puts a base run that tells of it",
                store._replace(runs=store.runs | {run}),
                prune._replace(at="P3", open=NOTHING, base=frozenset({base})),
            )
        elif at == "P3":
            condemned = record._replace(
                number=record.number + 1,
                condemned=prune.chosen,
                awaited=self.awaited_at_first(store),
                base=record.base | prune.base,
            )
            yield from self._create(
                store, prune, again, condemned, "P4 sessions", f"condemns {names(prune.chosen)} (P3)"
            )
        elif at.startswith("P4"):
            yield from self._wait(world, prune, again, clock)
        elif at == "P5 points":
            live = bool(self.counting(store))
            yield "lists the points again (P5)", store, prune._replace(at="P5 runs", live=live, packs=store.packs)
        elif at == "P5 runs":
            yield from self._mark_again(store, prune, again)
        elif at == "P5 sessions":
            open_now = store.sessions - store.points - store.fences
            yield "lists the open sessions (P5)", store, prune._replace(at="P5 packs", open=open_now)
        elif at == "P5 packs":
            yield self._absorb(store, number, prune, clock)
        elif at == "P6":
            ended = record._replace(
                number=record.number + 1,
                condemned=NOTHING,
                awaited=None,
                dead=(record.dead | prune.chosen) - prune.leaving,
                base=(record.base - prune.absorbed) | prune.base,
                absorbed=(record.absorbed | prune.absorbed) - prune.leaving,
            )
            words = f"says that {names(prune.chosen)} is dead (P6)"
            for done, changed, later in self._create(store, prune, again, ended, "P7", words):
                doomed = prune._replace(base=NOTHING, leaving=NOTHING, at="P7", record=ended)
                yield done, changed, doomed if later.at == "P7" else later
        elif at == "P7":
            yield self._delete(store, prune, again)

    def _create(
        self, store: Store, prune: Prune, again: Prune, record: Record, at: str, words: str
    ) -> Iterator[tuple[str, Store, Prune]]:
        if not self.succeeds(store, prune.record):
            yield "loses the race for the next gc record", store, again
            return
        changed = store._replace(chain=record) if record.number >= store.chain.number else store
        yield words, changed, Prune(at=at, round=prune.round, record=record) if at else again

    def _places(self, store: Store, record: Record) -> frozenset[str]:
        """Where the chunk lies by any run; where no run tells, by the packs themselves."""
        told = frozenset[str]().union(*(run.packs for run in store.runs)) & store.packs - record.dead
        return told or store.packs - record.dead

    def _mark(self, store: Store, number: int, prune: Prune, again: Prune) -> Iterator[tuple[str, Store, Prune]]:
        places = self._places(store, prune.record)
        if not prune.live:
            after = "P3" if prune.packs else "P4 sessions"
            yield (
                "finds that nothing is needed (P2)",
                store,
                prune._replace(at=after, chosen=prune.packs, packs=NOTHING),
            )
        elif not places:
            yield "finds the vault damaged and stops", store, again
        else:
            for kept in places:
                chosen = prune.packs - {kept}
                step = "P3" if chosen else "P4 sessions"
                memory = prune._replace(at=step, chosen=chosen, packs=NOTHING, live=False)
                yield f"is to keep {kept} (P2)", store, memory
            moved = f"pack-moved-{number + 1}.{prune.round}"
            if self.bounds.moves and moved not in store.packs:
                changed = store._replace(packs=store.packs | {moved})
                memory = prune._replace(at="P2 base", chosen=prune.packs, packs=NOTHING, live=False)
                yield f"moves the chunk into {moved} (P2)", changed, memory._replace(open=frozenset({moved}))

    def _wait(self, world: World, prune: Prune, again: Prune, clock: int) -> Iterator[tuple[str, Store, Prune]]:
        store, record = world.store, prune.record
        if prune.at == "P4 sessions":
            yield "lists the sessions (P4)", store, prune._replace(at="P4 points", open=store.sessions)
            return
        if prune.at == "P4 points":
            open_now = prune.open - store.points - store.fences
            yield "lists the points (P4)", store, prune._replace(at="P4 fence", open=open_now)
            return
        if prune.at == "P4 name":
            named = record._replace(number=record.number + 1, awaited=prune.open)
            yield from self._create(store, prune, again, named, "", f"names {names(prune.open)} to be waited for (P4)")
            return
        for sid in sorted(prune.open):
            if self._dead(world, sid, clock):
                left = prune._replace(open=prune.open - {sid})
                if sid in store.points:
                    yield f"is to fence {sid}, and it has committed (P4)", store, left
                else:
                    yield f"fences {sid} (P4)", store._replace(fences=store.fences | {sid}), left
                return
        if not record.condemned:
            yield "has nothing to condemn", store, Prune(at="P7", round=prune.round, record=record)
        elif not self.waits_for(record, prune.open):
            yield "waits for no session (P4)", store, prune._replace(at="P5 points", open=NOTHING)
        elif record.awaited is None:
            yield "finds sessions to wait for (P4)", store, prune._replace(at="P4 name")
        else:
            yield "ends while it has to wait (P4)", store, again

    def _dead(self, world: World, sid: str, clock: int) -> bool:
        number = int(sid[1:]) - 1
        if not sid.startswith("x") or number < 0 or number >= len(world.writers):
            # x0 ended long ago; sessions of others, which the judge invents, live.
            return sid == "x0"
        writer = world.writers[number]
        return writer.at in ENDED or self.is_dead(writer, clock)

    def _mark_again(self, store: Store, prune: Prune, again: Prune) -> Iterator[tuple[str, Store, Prune]]:
        condemned = prune.record.condemned
        places = self._places(store, prune.record)
        if prune.live and not places:
            yield "finds the vault damaged and stops", store, again
            return
        memory = prune._replace(at="P5 sessions", live=False, runs=store.runs)
        spared = self.spares(prune.live, places, condemned)
        for kept in spared & condemned:
            yield f"spares {kept} (P5)", store, memory._replace(chosen=condemned - {kept})
        if not spared & condemned:
            yield "spares nothing (P5)", store, memory._replace(chosen=condemned)

    def _absorb(self, store: Store, number: int, prune: Prune, clock: int) -> tuple[str, Store, Prune]:
        record = prune.record
        alive = self.present(store, prune) - prune.chosen - record.dead
        taken = [
            run
            for run in prune.runs
            if run.name not in record.absorbed
            and run.owner not in prune.open
            and (run.packs - alive or (run.owner == "prune" and run.name not in record.base))
        ]
        rows = frozenset[str]().union(*(run.packs for run in taken)) & alive
        name = f"base-{number + 1}.{prune.round}"
        new = frozenset({Run(name, "prune", rows)} if rows else ())
        memory = prune._replace(
            at="P6",
            packs=NOTHING,
            runs=frozenset(),
            open=NOTHING,
            base=frozenset(run.name for run in new),
            absorbed=frozenset(run.name for run in taken),
            leaving=self.leaving(store, record, clock),
        )
        words = "lists the packs and makes runs that name missing ones into a base run (P5)"
        return words, store._replace(runs=store.runs | new), memory

    def _delete(self, store: Store, prune: Prune, again: Prune) -> tuple[str, Store, Prune]:
        for pack in sorted((prune.record.dead | prune.chosen) & store.packs):
            return f"deletes {pack} (P7)", store._replace(packs=store.packs - {pack}), prune
        for run in sorted(store.runs):
            if run.name in prune.record.absorbed | prune.absorbed:
                return f"deletes {run.name} (P7)", store._replace(runs=store.runs - {run}), prune
        gone = store.sessions & (store.points | store.fences)
        return "deletes what is left of ended sessions (P7)", self.ended(store, gone), again

    def reader(self, world: World, number: int) -> Steps:
        """A restore: index runs, then one place after the other."""
        store, reader = world.store, world.readers[number]

        def after(words: str, now: Reader) -> tuple[str, World]:
            readers = (*world.readers[:number], now, *world.readers[number + 1 :])
            return f"reader {words}", world._replace(readers=readers)

        if reader.at == "R1":
            for sid in self.counting(store):
                yield after(f"of {sid} lists the runs", Reader("R2", sid, store.run_names))
        elif reader.at == "R2":
            told = frozenset[str]().union(*(run.packs for run in store.runs if run.name in reader.runs))
            yield after("reads the runs that are still there", reader._replace(at="R3", places=told))
        elif reader.at == "R3":
            for place in reader.places:
                if place in store.packs:
                    yield after(f"reads {place}", Reader("done"))
                else:
                    yield after(f"does not find {place}", reader._replace(places=reader.places - {place}))
            if not reader.places:
                if self.looks_again(reader, store):
                    yield after("lists the runs again", reader._replace(at="R2", runs=store.run_names, again=True))
                else:
                    yield after("has no place left", Reader("failed", reader.point))

    def expiry(self, world: World) -> Steps:
        """The owner lets points go: the intent, the session, the point."""
        store = world.store
        for sid in sorted(self.counting(store) & self.bounds.expires):
            yield f"the owner expires {sid}", world._replace(store=store._replace(intents=store.intents | {sid}))
        for sid in sorted(store.intents & store.points):
            if sid in store.sessions:
                changed = store._replace(sessions=store.sessions - {sid})
                yield f"expiry deletes the session of {sid}", world._replace(store=changed)
            else:
                yield f"expiry deletes the point of {sid}", world._replace(store=self.outlives(store, sid))

    def network(self, world: World) -> Steps:
        """A put of earlier arrives again, which no network does after thirty days."""
        store = world.store
        for kind, what in store.late:
            left = store._replace(late=store.late - {(kind, what)})
            if isinstance(what, Run):
                if what not in store.runs:
                    changed = left._replace(runs=store.runs | {what})
                    yield f"a put of {what.name} arrives late", world._replace(store=changed)
            elif kind == "pack" and what not in store.packs:
                changed = left._replace(packs=store.packs | {what})
                yield f"a put of {what} arrives late", world._replace(store=changed)
            elif kind == "session" and what not in store.sessions:
                changed = left._replace(sessions=store.sessions | {what})
                yield f"a put of the session {what} arrives late", world._replace(store=changed)
            elif kind == "point" and what not in store.points | store.fences:
                changed = left._replace(points=store.points | {what})
                yield f"a put of the point {what} arrives late", world._replace(store=changed)
        if world.days:
            aged = store.chain.dead | store.chain.absorbed
            changed = store._replace(aged=aged, late=frozenset())
            yield "thirty days pass", world._replace(store=changed, days=world.days - 1)


def _with_prune(world: World, store: Store, number: int, prune: Prune) -> World:
    return world._replace(store=store, prunes=(*world.prunes[:number], prune, *world.prunes[number + 1 :]))


def names(some: frozenset[str]) -> str:
    """As they stand in a story."""
    return ", ".join(sorted(some)) or "nothing"
