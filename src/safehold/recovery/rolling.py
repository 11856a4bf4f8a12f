"""Reads a vault piece by piece over many runs, what was not read for longest first, and notes what is proved by it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectNotFound, StoreError, StoreFull, StorePermission
from safehold.model.remembered import keep
from safehold.model.spread import spread
from safehold.recovery.disk import THREADS_LOCAL, THREADS_REMOTE
from safehold.recovery.hurt import hurt_by
from safehold.recovery.packs import Packs
from safehold.recovery.units import units
from safehold.recovery.verify import Finding, Findings
from safehold.vault.catalogue import Point
from safehold.vault.disk_tree import PagesSeen
from safehold.vault.fetch import ChunkReader
from safehold.vault.gc.quarantine import note_packs
from safehold.vault.proof import BAD, prove_pack
from safehold.vault.sealing import ChunkOpener
from safehold.vault.vault import Vault

__all__ = ["ReadLog", "Rolled", "verify_rolling"]

_SAVE_EVERY = 16
_BATCH = 1024
_MOST_LOST = 1000
"""Chunks of a member that are found missing before the rest of it is left alone."""


class ReadLog:
    """When each pack was last read and found right, by the store's time, in a file of this machine. Losing it costs reading again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.times = msgspec.msgpack.decode(path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self.times = {}

    def save(self, there: Iterable[str]) -> None:
        """Keep what is known of packs that are still there. A machine that cannot keep it goes on without."""
        kept = {name: self.times[name] for name in there if name in self.times}
        with contextlib.suppress(OSError):
            keep(self._path, msgspec.msgpack.encode(kept))


@dataclass
class Rolled:
    """What a run read and proved: bytes and packs read, points proved by it, points that still wait, and what was wrong."""

    read: int = 0
    packs: int = 0
    waiting_bytes: int = 0
    proved: list[Point] = field(default_factory=list)
    waiting: list[Point] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def verify_rolling(
    vault: Vault, points: Sequence[Point], older_than: float, budget: int, log: ReadLog, ctx: Context
) -> Rolled:
    """Prove points whose last proof is older than `older_than` seconds, reading at most about `budget` bytes of packs.

    Metadata is read for all of them; data pack by pack, the one not read for longest first, so that a run goes on where the last one
    stopped. A point is proved once all packs that it needs were read within that time.
    """
    rolled = Rolled()
    try:
        now = vault.store_time()
    except (StoreFull, StorePermission):
        # The times of packs are this machine's own notes. The vault's clock stands still where nobody can write.
        now = max(vault.listed_time(), ctx.clock.now())
    notes = vault.notes()
    facts = notes.facts()
    due = [p for p in points if p.subject not in facts or facts[p.subject].data < now - older_than]
    packs = Packs(vault.store)
    sizes = packs.sizes
    needs = {point.name: _needs(vault, point, packs, rolled.findings, ctx) for point in due}
    if _gone(vault, points, sizes, log):
        # What was proved once may lack something by now.
        for point in points:
            if point not in due:
                _needs(vault, point, packs, rolled.findings, ctx)
    wanted = {name for one in needs.values() for name in one.packs}
    stale = sorted(
        (name for name in wanted if log.times.get(name, 0.0) < now - older_than),
        key=lambda n: (log.times.get(n, 0.0), n),
    )
    chosen: list[str] = []
    total = 0
    for name in stale:
        if chosen and total + sizes[name] > budget:
            break
        chosen.append(name)
        total += sizes[name]
    ctx.progress.start("verify", total)
    bad = _read(vault, chosen, log, now, sizes, rolled, ctx)
    ctx.progress.done()
    log.save(sizes)
    right = {name for name in chosen if log.times.get(name) == now}
    note_packs(vault, right, bad, rolled.findings.packs | vault.fetcher.failed)
    for name, reason in bad.items():
        hurt = [p for p in due if name in needs[p.name].packs]
        rolled.findings.add(Finding(reason, name, hurt[0].id if hurt else ""))
    for point in due:
        needed = needs[point.name].packs
        if not needs[point.name].whole or any(name in bad for name in needed):
            continue
        oldest = min((log.times.get(name, 0.0) for name in needed), default=now)
        if oldest >= now - older_than:
            try:
                notes.add(point.subject, "verified", {"depth": "data", "since": oldest})
            except StoreError as error:
                ctx.progress.warn(f"that a point was proved could not be noted in the vault: {error}")
            rolled.proved.append(point)
        else:
            rolled.waiting.append(point)
    rolled.waiting_bytes = sum(sizes[name] for name in stale[len(chosen) :])
    return rolled


def _gone(vault: Vault, points: Sequence[Point], sizes: dict[str, int], log: ReadLog) -> bool:
    """True where a pack is missing that an index run names, or that this machine has read, and that no prune gave up."""
    dead = frozenset(vault.chain.record.dead) if vault.chain.record else frozenset()
    one_of_each = {certificate.domain: point for point in points if (certificate := vault.certificate(point.wid))}
    named = {name for point in one_of_each.values() for name in vault.finder(point.wid).packs()}
    return bool((named | log.times.keys()) - sizes.keys() - dead)


@dataclass
class _Needs:
    """The packs that hold a point's data, as far as that can be told; `whole` where all of it can."""

    packs: set[str] = field(default_factory=set)
    whole: bool = True


def _needs(vault: Vault, point: Point, packs: Packs, findings: Findings, ctx: Context) -> _Needs:
    """What a point needs. What nobody can tell, or is gone, is among the findings."""
    needs, seen = _Needs(), PagesSeen()
    gone: dict[bytes, str] = {}
    missed = 0
    try:
        chunks = vault.chunks(point)
        for member in point.body.members:
            for unit in units(vault, point, member, seen):
                ctx.cancel.check()
                missed += bool(unit.lost)
                if missed + len(gone) > _MOST_LOST:
                    break
                _places(chunks, unit.ids, packs, needs.packs, gone, findings)
        if gone:
            packs.renew(chunks)
            again, gone = list(gone), {}
            _places(chunks, again, packs, needs.packs, gone, findings)
        if missed or gone:
            needs.whole = False
            for member in point.body.members:
                for what in hurt_by(vault, point, member, gone, PagesSeen()).told():
                    findings.add(Finding(what, member.name, point.id))
    except DamageError as error:
        findings.add(Finding(f"{error.what} ({error.on})", ", ".join(point.resources), point.id))
        needs.whole = False
    return needs


def _places(
    chunks: ChunkReader,
    ids: Sequence[bytes],
    packs: Packs,
    needed: set[str],
    gone: dict[bytes, str],
    findings: Findings,
) -> None:
    for at in range(0, len(ids), _BATCH):
        some = ids[at : at + _BATCH]
        for identity, (place, others) in zip(some, packs.places(chunks, some), strict=True):
            if place is None:
                lost = {other.pack for other in others}
                findings.packs |= lost
                gone[identity] = ", ".join(f"{pack} is gone" for pack in sorted(lost)) or "no pack holds it"
            else:
                needed.add(place.pack)


def _dead(vault: Vault, pack: str) -> bool:
    record = vault.newest_chain().record
    return record is not None and pack in record.dead


def _read(
    vault: Vault, chosen: list[str], log: ReadLog, now: float, sizes: dict[str, int], rolled: Rolled, ctx: Context
) -> dict[str, str]:
    """Read packs whole; gives those that are not right, with the reason. One that a prune deleted meanwhile proves nothing and is not wrong."""
    bad: dict[str, str] = {}
    lock = threading.Lock()

    def work(share: Iterator[str]) -> None:
        opener = ChunkOpener(vault.id)
        for name in share:
            ctx.cancel.check()
            try:
                chunks = prove_pack(vault, name, sizes[name], opener)
            except BAD as error:
                with lock:
                    log.times.pop(name, None)
                    if not (isinstance(error, ObjectNotFound) and _dead(vault, name)):
                        bad[name] = str(error)
                continue
            with lock:
                log.times[name] = now
                rolled.packs += 1
                rolled.read += sizes[name]
                rolled.findings.checked += chunks
                if rolled.packs % _SAVE_EVERY == 0:
                    log.save(sizes)
            ctx.progress.advance(sizes[name])

    spread(iter(chosen), work, THREADS_REMOTE if vault.store.caps.parallel > THREADS_LOCAL * 2 else THREADS_LOCAL)
    return bad
