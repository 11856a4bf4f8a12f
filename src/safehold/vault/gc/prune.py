"""The steps of a prune, P1 to P7; the argument for their order is in docs/format.md.

P1  read the newest gc record; if it condemns packs, go to P4: somebody began, and this finishes
P2  list packs, index, points; mark; choose one surviving place for each live chunk; C = all other packs
P3  create the next record {condemned: C}; losing the create leads back to P1
P4  list the sessions without a commit; fence those known to be dead; name the others in the next record and wait for these alone
P5  list the points again; D = C without packs that hold a live chunk which lies nowhere outside of C
P6  create the next record {dead: D, base runs without D, absorbed runs}
P7  delete D, absorbed runs, ended sessions
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectNotFound, StoreFull, UsageError
from safehold.vault.bounds import largest_pack
from safehold.vault.catalogue import Point
from safehold.vault.gc.link import add_link
from safehold.vault.gc.listed import long_listed
from safehold.vault.gc.mark import Chosen, IdSorter, choose, reaches, walk
from safehold.vault.gc.repack import live_in, repack, worth_moving
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.runs import absorb, write_base
from safehold.vault.gc.sessions import OpenSession, Sessions
from safehold.vault.gc.spared import Spared
from safehold.vault.index.rows import Location
from safehold.vault.locate import DomainFinder
from safehold.vault.names import Kind, kind_of, session_name
from safehold.vault.records import BaseRun, GcRecord
from safehold.vault.trust import Chain
from safehold.vault.vault import Vault

__all__ = ["Prune"]

_Good = Callable[[bytes, Location], bool]
"""Whether a chunk can be had at a place."""

_MOST_RACES = 10

_MOST_ROOM = 32 * 1024 * 1024
"""Bytes that are kept free for the records of a prune at most: a note must not be much larger."""


class Prune:
    """One attempt to give space back. Anybody with the owner's key may run it at any time, also several at once."""

    def __init__(self, vault: Vault, scratch: Path, dead: Callable[[OpenSession, float], bool], ctx: Context) -> None:
        """`dead` says of a session, given the store's time, that it can be ended: its process is gone, or nothing was heard of it for too
        long. `scratch` is a directory for sorting. FormatError where the vault uses a feature that this program lacks.
        """
        vault.chain.require("delete")
        self._vault, self._store, self._ctx = vault, vault.store, ctx
        self._scratch, self._dead = scratch, dead
        self._owner, self._sessions = vault.owner_key, Sessions(vault)
        self._seen: set[str] = set()
        self._counted: tuple[str, ...] = ()
        self._moved_base: tuple[BaseRun, ...] = ()
        self._emptied: set[str] = set()
        self._full = False
        self.report = PruneReport()

    # -- the steps ---------------------------------------------------------------------------------------------------

    def run(self) -> PruneReport:
        """As far as it goes now. DamageError where the owner's points cannot all be walked: nothing is deleted then."""
        for _ in range(_MOST_RACES):
            chain = self._chain()
            try:
                done = self._attempt(chain)
            except (DamageError, ObjectNotFound):
                # What was being walked may have been expired and pruned by others meanwhile.
                if not self._moved(chain):
                    raise
                continue
            if done:
                return self.report
        raise UsageError("other prunes are at work on this vault", on=self._store.url, remedy="let them finish")

    def _attempt(self, chain: Chain) -> bool:
        """The steps from the newest record on; false where somebody else went on with the chain."""
        record = self._record(chain)
        if not record.condemned:
            condemned = self._condemned(chain)
            if condemned:
                if not self._create(chain, condemned=condemned, awaited=None, base=(*record.base, *self._moved_base)):
                    return False
                chain = self._chain()
                record = self._record(chain)
        ended = self._sessions_ended(record.awaited)
        if not record.condemned:
            # Nobody can rely on what is not condemned, so nobody is waited for.
            self.report.waiting = []
            if not self._names_lost(record):
                self._delete(record)
                return True
        elif not ended:
            # What begins from here on cannot rely on what is condemned, so that no stream of backups holds a prune up for ever.
            names = tuple(sorted(session_name(one.wid, one.sid) for one in self.report.waiting))
            return record.awaited is not None or self._create(chain, awaited=names)
        done = self._finish(chain, record)
        if done is None:
            return False
        self._delete(done)
        return True

    def _names_lost(self, record: GcRecord) -> bool:
        """True where index runs speak of packs that are lost: then they are written anew without them."""
        domains = {certificate.domain for certificate in self._vault.writers.values()}
        named = {name for domain in domains for name in self._vault.domain(domain)[0].reader_view().pack_names()}
        # The packs come after the runs: see `_finish`.
        return not named.issubset(self._packs().keys() | set(record.dead))

    def _moved(self, chain: Chain) -> bool:
        """True where the chain or the points are no longer what this attempt began with."""
        return self._chain().digest != chain.digest or self._point_names() != self._seen

    def _point_names(self) -> set[str]:
        return {stamp.name for stamp in self._store.list(Kind.POINT.prefix + "/") if stamp.size}

    def _chain(self) -> Chain:
        chain = self._vault.newest_chain()
        chain.require("delete")
        return chain

    def _record(self, chain: Chain) -> GcRecord:
        if chain.record is None:
            raise DamageError(
                "the gc chain is missing: nothing can be pruned safely",
                on="gc/",
                remedy='see the runbook, "Damaged vault"',
            )
        return chain.record

    def _packs(self) -> dict[str, int]:
        listed = [*self._store.list(Kind.PACK.prefix + "/"), *self._store.list(Kind.META.prefix + "/")]
        return {stamp.name: stamp.size for stamp in listed if kind_of(stamp.name) in (Kind.PACK, Kind.META)}

    def _now(self) -> float:
        """The store's time."""
        return self._vault.store_time()

    def _condemned(self, chain: Chain) -> tuple[str, ...]:
        """P2. The listing of packs comes first: a pack that a session uploads later is none of this prune's business.

        Packs that are mostly garbage are emptied into new ones, which `base` then tells of.
        """
        packs = self._packs()
        dead = frozenset(self._record(chain).dead)
        self._moved_base, self._emptied, self._full = (), set(), False
        self.report.moved = 0
        with self._room(packs) as movable:
            chosen = self._mark(chain, frozenset(), movable)
        # What is dead already nobody can rely on: it is deleted without waiting.
        condemned = tuple(sorted(((packs.keys() - chosen.packs.keys()) | self._emptied) - dead))
        for name in chosen.packs:
            if packs.get(name, 0) > largest_pack(self._vault.parameters):
                self._ctx.progress.warn(
                    f"a pack of {packs[name]} bytes is larger than any of this vault can be: it is left as it is ({name})"
                )
        self.report.stored = sum(packs.values())
        self.report.live = sum(chosen.packs.values())
        self.report.condemned = sum(packs[name] for name in condemned)
        self.report.condemned_packs = len(condemned)
        return condemned

    @contextlib.contextmanager
    def _room(self, packs: dict[str, int]) -> Iterator[dict[str, int]]:
        """Keep room for the records of this prune while packs are moved, and give the packs that may be: none where the store is full already."""
        size = min(_MOST_ROOM, 4096 + 256 * len(packs))
        try:
            kept = self._vault.notes().add(self._vault.id, "upkeep", {"room": "-" * size})
        except StoreFull:
            yield {}
            return
        try:
            yield packs
        finally:
            self._store.delete(kept)

    def _mark(self, chain: Chain, avoid: frozenset[str], movable: dict[str, int] | None = None) -> Chosen:
        """One place for each chunk that any point needs. Every run counts, whoever wrote it and whether the session ended or not.

        Points are listed before runs, and runs before packs: what a point that is seen needs is then seen too. `movable` are packs (with
        sizes) that may be emptied into others.
        """
        record = self._record(chain)
        dead, suspect = frozenset(record.dead), frozenset(record.damaged)
        chosen, spared = Chosen(), Spared(self._vault)
        found = [
            (domain, points, self._vault.fresh_finder(points[0].wid))
            for domain, points in self._points_by_domain(chain, spared).items()
        ]
        present = {name: size for name, size in self._packs().items() if name not in dead}
        for domain, points, finder in found:
            with IdSorter(self._scratch) as live:
                spared.add(domain, walk(points, self._vault.chunks, live, self._ctx))
                good = self._vault.chunks(points[0]).holds
                choose(live, finder.rows(), present, avoid, suspect, good, chosen)
                spared.add(domain, self._look_in_packs(finder, present, avoid | suspect, good, chosen))
                if domain not in spared.reasons:
                    kept = self._kept(present, chosen, good)
                    for few in worth_moving(movable or {}, chosen.packs, self._vault.parameters):
                        self._move(points[0], few, live, finder, kept)
        self._spare(spared, present, chosen)
        return chosen

    def _kept(self, present: dict[str, int], chosen: Chosen, good: _Good) -> _Good:
        """Whether a chunk need not be moved, as it can be had at another place that stays: in a pack that nothing else was chosen from it does not,
        and the one to be emptied would have to stay for it.
        """

        def kept(identity: bytes, at: Location) -> bool:
            stays = at.pack in chosen.packs and at.pack not in self._emptied
            return stays and reaches(present, at) and good(identity, at)

        return kept

    def _look_in_packs(
        self,
        finder: DomainFinder,
        present: dict[str, int],
        avoid: frozenset[str],
        good: _Good,
        chosen: Chosen,
    ) -> list[DamageError]:
        """Choose places of chunks that no run tells of, or none that is right: a run may be lost, and then the packs themselves tell. Returns what
        is nowhere.
        """
        gone = []
        for identity in chosen.missing:
            places = [at for at in finder.locations(identity) if reaches(present, at)]
            if places:
                places.sort(key=lambda at: (at.pack in avoid, at.pack))
                best = places[0] if len(places) == 1 else next((at for at in places if good(identity, at)), None)
                for at in places if best is None else [best]:
                    chosen.keep(at)
                continue
            gone.append(
                DamageError(
                    f"chunk {identity.hex()[:16]} is gone that points need",
                    on=self._store.url,
                    remedy="find the damaged points with safehold verify; repair or expire them; nothing is pruned before",
                )
            )
        chosen.missing.clear()
        return gone

    def _spare(self, spared: Spared, packs: dict[str, int], chosen: Chosen) -> None:
        """Choose whatever the domains that are left whole may need."""
        self.report.spared = spared.reasons
        for name in spared.packs(packs.keys() - (chosen.packs.keys() - self._emptied)):
            chosen.packs[name] = packs[name]
            self._emptied.discard(name)

    def _move(self, point: Point, packs: frozenset[str], live: IdSorter, finder: DomainFinder, kept: _Good) -> None:
        """Empty packs of the domain of a point, but for chunks that are `kept` elsewhere."""
        if self._full:
            return
        found = live_in(packs, live, finder.rows(), kept)
        if not found:
            return
        certificate = self._vault.certificate(point.wid)
        assert certificate is not None
        locator, index_key, _ = self._vault.domain(certificate.domain)
        moved = repack(self._vault, self._vault.chunks(point), found, self._ctx)
        rows = sorted(
            (row.identity, Location(pack.name, row.offset, row.stored, row.plain, row.codec))
            for pack, found_there in moved.packs
            for row in found_there
        )
        sizes = {pack.name: pack.size for pack, _ in moved.packs}
        self._full = moved.full
        try:
            base = write_base(locator, rows, sizes, self._owner, index_key, self._scratch)
        except StoreFull:
            # Nothing tells where they are: they are garbage, and what is garbage already is what makes room.
            self._full = True
            return
        self._moved_base += base
        # The same bytes may give the same pack again, and that one is not to go.
        self._emptied |= moved.emptied - sizes.keys()
        self.report.moved += sum(sizes.values())

    def _points_by_domain(self, chain: Chain, spared: Spared) -> dict[bytes, list[Point]]:
        self._seen = self._point_names()
        recycled = self._now() - self._vault.parameters.recycle
        # What was expired longer ago is gone, even where a put that came late has brought its object back.
        points, rejected = self._vault.points(fresh=True, expired_before=recycled, chain=chain)
        spared.reject(rejected)
        # One that is lost is still missed by whoever has only this record to go by.
        lost = [one.name for one in rejected if one.gone]
        self._counted = tuple(sorted((*(point.name for point in points), *lost)))
        domains: dict[bytes, list[Point]] = {}
        for point in points:
            certificate = self._vault.certificate(point.wid)
            if certificate is None:
                raise DamageError("point is of a writer whose certificate is missing", on=point.name)
            domains.setdefault(certificate.domain, []).append(point)
        return domains

    def _create(self, chain: Chain, **changes: object) -> bool:
        """The next record of the chain; False where somebody else made it first."""
        return add_link(self._store, self._vault.id, self._owner, self._record(chain), chain.digest, **changes)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def _sessions_ended(self, awaited: tuple[str, ...] | None) -> bool:
        """P4: fence the dead ones; true where none is left that may rely on what is condemned: of `awaited`, or of all while nobody listed them."""
        dead, self.report.waiting = self._sessions_by_life(awaited)
        self.report.fenced += [session for session in dead if self._sessions.fence(session)]
        return not self.report.waiting

    def _sessions_by_life(self, awaited: tuple[str, ...] | None) -> tuple[list[OpenSession], list[OpenSession]]:
        """Open sessions that are dead or of a revoked writer, and those that are waited for."""
        now = self._now()
        revoked = self._vault.notes().revocations()
        dead: list[OpenSession] = []
        waiting: list[OpenSession] = []
        for session in self._sessions.open():
            if session.wid in revoked or self._dead(session, now):
                dead.append(session)
            elif awaited is None or session_name(session.wid, session.sid) in awaited:
                waiting.append(session)
        return dead, waiting

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, chain: Chain, record: GcRecord) -> GcRecord | None:
        """P5 and P6; None where somebody else went on with the chain."""
        packs = self._packs()
        condemned = frozenset(record.condemned)
        chosen = self._mark(chain, condemned)
        dead = condemned - chosen.packs.keys()
        self.report.live = sum(chosen.packs.values())
        self.report.stored = sum(packs.values())
        base, absorbed = list(record.base), list(record.absorbed)
        domains = {certificate.domain for certificate in self._vault.writers.values()}
        runs = {domain: self._vault.domain(domain) for domain in domains}
        open_now = {(wid.hex(), sid.hex()) for wid, sid in self._sessions.open_ids()}
        # The packs come after the runs: one that a listed run names and that is not there was deleted, and is not merely younger.
        # What an earlier prune deleted is not there either, whoever names it again.
        alive = frozenset(self._packs().keys() - dead - set(record.dead))
        left = False
        for domain, (locator, index_key, listed) in runs.items():
            known = {run.name for run in base}
            ended = [
                name
                for name in listed
                if name not in absorbed and (name.split("/")[1], name.split("/")[2].rpartition("-")[0]) not in open_now
            ]
            unlisted = frozenset(n for n in ended if n.split("/")[1] == domain.hex() and n not in known)
            try:
                done = absorb(locator, ended, unlisted, alive, self._owner, index_key, self._scratch)
            except StoreFull as error:
                # The runs do as they are: what they say of dead packs the chain corrects, and there is room once those are gone.
                self._ctx.progress.warn(f"index runs are left as they are until there is room: {error}")
                left = True
                continue
            base = [run for run in base if run.name not in done.runs] + list(done.base)
            absorbed += done.runs
        self.report.absorbed = len(absorbed) - len(record.absorbed)
        old_dead, old_absorbed = (set(), set()) if left else long_listed(self._vault, record, self._now())
        changes = {
            "condemned": (),
            "awaited": None,
            "dead": tuple(sorted((set(record.dead) - old_dead) | dead)),
            "base": tuple(base),
            "absorbed": tuple(sorted(set(absorbed) - old_absorbed)),
            "points": self._counted,
            "damaged": tuple(sorted(set(record.damaged) - set(record.dead) - dead)),
        }
        if not self._create(chain, **changes):
            return None
        self.report.condemned = self.report.condemned_packs = 0
        self.report.deleted = sum(packs.get(name, 0) for name in dead)
        self.report.deleted_packs = len(dead & packs.keys())
        return self._record(self._chain())

    def _delete(self, record: GcRecord) -> None:
        """P7. What is there of everything that the record calls dead and absorbed, so that what another prune left undone is done too."""
        dead = self._packs().keys() & set(record.dead)
        absorbed = {stamp.name for stamp in self._store.list(Kind.INDEX.prefix + "/")} & set(record.absorbed)
        for name in (*sorted(dead), *sorted(absorbed)):
            self._ctx.cancel.check()
            self._store.delete(name)
        self._sessions.clean()
