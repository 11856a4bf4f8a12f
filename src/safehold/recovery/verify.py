"""Proves that a vault holds what its points need: by their structure, by their data, or by every stored byte."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectNotFound, ShortRead
from safehold.model.spread import spread
from safehold.ports.store import Stamp, Store
from safehold.recovery.disk import THREADS_LOCAL, THREADS_REMOTE
from safehold.recovery.hurt import hurt_by
from safehold.recovery.packs import Packs
from safehold.recovery.units import Unit, units
from safehold.vault.bounds import check_size
from safehold.vault.catalogue import Point
from safehold.vault.disk_tree import PagesSeen
from safehold.vault.envelope import StoredCheck, decode, open_object
from safehold.vault.fetch import ChunkReader, Lost
from safehold.vault.names import Kind, gc_name, kind_of
from safehold.vault.records import GcRecord, Member, RunPack
from safehold.vault.run import read_run
from safehold.vault.vault import Vault

__all__ = ["Finding", "Findings", "verify_data", "verify_stored", "verify_structure"]

_PIECE = 32 * 1024 * 1024
"""Bytes read at once where a whole object need not be in memory; a usual pack is one piece."""
_SEEN = 1_000_000
"""Ids remembered so that shared blocks are read once: about 100 MB at most, after which some are read again."""

_PAGES = 1_000_000
"""Pages of disks remembered from point to point, about 130 MB, so that what points share is walked once."""

_MOST_LOST = 1000
"""Metadata chunks of a dedup domain that are missed before a member is given up at the next one."""


@dataclass(frozen=True)
class Finding:
    """Something wrong: `what`, on which object or resource, and which point it hurts (empty where that is not
    known).
    """

    what: str
    on: str
    point: str = ""


@dataclass
class Findings:
    """What a verification looked at, and what it found. Thread-safe."""

    checked: int = 0
    logical: int = 0
    stored: int = 0
    found: list[Finding] = field(default_factory=list)
    packs: set[str] = field(default_factory=set)
    """Packs that may be missing or bad: they were looked in for what was not found."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, finding: Finding) -> None:
        """Note something wrong."""
        with self._lock:
            self.found.append(finding)

    def fail(self, on: str) -> None:
        """DamageError where there are any, naming the first."""
        if self.found:
            first = self.found[0]
            raise DamageError(
                f"{len(self.found)} problem{'s' * (len(self.found) > 1)} found, first: {first.what} ({first.on})",
                on=on,
                remedy='see the runbook, "Damaged vault"; restores say what they cannot read',
            )

    def count(self, checked: int, logical: int, stored: int) -> None:
        """Note what was looked at: objects or chunks, bytes of disks, bytes read from the vault."""
        with self._lock:
            self.checked += checked
            self.logical += logical
            self.stored += stored


Check = Callable[[ChunkReader, list[bytes]], Iterator[tuple[bytes, str]]]
"""Looks at chunks; gives those that are not as they should be, each with the reason."""


def verify_structure(vault: Vault, points: Iterable[Point], ctx: Context) -> Findings:
    """Everything that the points need is named by an index run or a pack and lies in the store with the size it
    should have.
    """
    packs, findings = Packs(vault.store), Findings()

    def check(chunks: ChunkReader, ids: list[bytes]) -> Iterator[tuple[bytes, str]]:
        for identity, (place, others) in zip(ids, packs.places(chunks, ids), strict=True):
            if place is None:
                findings.packs.update(other.pack for other in others)
                yield identity, ", ".join(sorted({f"{other.pack} is gone" for other in others})) or "no pack holds it"

    def again(chunks: ChunkReader, ids: list[bytes]) -> Iterator[tuple[bytes, str]]:
        packs.renew(chunks)
        return check(chunks, ids)

    return _verify(vault, points, check, again, ctx, findings)


def verify_data(vault: Vault, points: Iterable[Point], ctx: Context) -> Findings:
    """Every block and file of every point is fetched, decrypted and hashed; what points share is read once."""
    findings = Findings()

    def check(chunks: ChunkReader, ids: list[bytes]) -> Iterator[tuple[bytes, str]]:
        read = 0
        for result in chunks.many(ids):
            if isinstance(result, Lost):
                yield result.identity, result.reason
            else:
                read += len(result.data)
        findings.count(0, 0, read)

    # Reading looks for moved chunks by itself: what it did not find is gone.
    return _verify(vault, points, check, None, ctx, findings)


class _Domain:
    """What a verification knows of the points of one dedup key: what it has looked at, what was bad, how much metadata it could not read."""

    def __init__(self, chunks: ChunkReader) -> None:
        self.chunks = chunks
        self.walked = PagesSeen()
        self.seen: set[bytes] = set()
        self.bad: dict[bytes, str] = {}
        self.lost = 0


def _verify(
    vault: Vault,
    points: Iterable[Point],
    check: Check,
    again: Check | None,
    ctx: Context,
    findings: Findings,
) -> Findings:
    """Look at everything first, at what was bad with `again`, and then for what is hurt by what is: one bad block may hurt many points, at many
    places.
    """
    domains: dict[bytes, _Domain] = {}
    members = [(point, member) for point in points for member in point.body.members]
    for point, member in members:
        try:
            domain = domains.setdefault(point.dedup_key, _Domain(vault.chunks(point)))
            if domain.walked.count > _PAGES:
                domain.walked = PagesSeen()
            _member(_bounded(units(vault, point, member, domain.walked), domain, member), check, domain, findings, ctx)
        except DamageError as error:
            findings.add(Finding(f"{error.what} ({error.on})", member.name, point.id))
    for domain in domains.values():
        if domain.bad and again is not None:
            domain.bad = dict(again(domain.chunks, list(domain.bad)))
    clean: dict[bytes, PagesSeen] = defaultdict(PagesSeen)
    for point, member in members:
        at_hand = domains.get(point.dedup_key)
        if at_hand is None or not (at_hand.bad or at_hand.lost):
            continue
        # What ended the look at a member is among the findings already.
        with contextlib.suppress(DamageError):
            for what in hurt_by(vault, point, member, at_hand.bad, clean[point.dedup_key]).told():
                findings.add(Finding(what, member.name, point.id))
    findings.packs |= vault.fetcher.failed
    return findings


def _bounded(all_units: Iterator[Unit], domain: _Domain, member: Member) -> Iterator[Unit]:
    """Units of a member. Each page that cannot be read costs some looking for, and a hostile writer can name any number that never were."""
    for unit in all_units:
        if unit.lost:
            domain.lost += 1
            if domain.lost > _MOST_LOST:
                raise DamageError(
                    f"more than {_MOST_LOST} metadata chunks cannot be read, the last: {unit.lost}", on=member.name
                )
        yield unit


def _member(work_units: Iterator[Unit], check: Check, domain: _Domain, findings: Findings, ctx: Context) -> None:
    lock = threading.Lock()

    def work(share: Iterator[Unit]) -> None:
        for unit in share:
            ctx.cancel.check()
            with lock:
                fresh = [identity for identity in dict.fromkeys(unit.ids) if identity not in domain.seen]
                if len(domain.seen) < _SEEN:
                    domain.seen.update(fresh)
            for identity, reason in check(domain.chunks, fresh):
                domain.bad[identity] = reason
            findings.count(len(fresh), unit.logical, 0)
            ctx.progress.advance(unit.logical)

    spread(work_units, work, THREADS_REMOTE if domain.chunks.remote else THREADS_LOCAL)


def verify_stored(store: Store, ctx: Context) -> Findings:
    """Every object is what its name says, and every pack that an index run lists is there: no key is needed.

    What it cannot see: objects that vanished together with everything that names them, and an older state of the
    whole vault.
    """
    findings = Findings()
    listed: dict[str, tuple[int, str]] = {}
    there: dict[str, int] = {}
    lock, large = threading.Lock(), threading.Lock()

    def work(share: Iterator[Stamp]) -> None:
        buffer = bytearray()
        for stamp in share:
            ctx.cancel.check()
            kind = kind_of(stamp.name)
            with lock:
                there[stamp.name] = stamp.size
            if kind is None:
                findings.add(Finding("object is of no kind that a vault holds", stamp.name))
                continue
            if len(buffer) < min(stamp.size, _PIECE):
                buffer = bytearray(min(stamp.size, _PIECE))
            try:
                check_size(stamp)
                # Large runs one after the other: each is in memory whole.
                with large if stamp.size > _PIECE and kind is Kind.INDEX else contextlib.nullcontext():
                    packs = _read_stored(store, stamp, kind, memoryview(buffer))
            except DamageError as error:
                findings.add(Finding(error.what, stamp.name))
                continue
            except (ObjectNotFound, ShortRead) as error:
                findings.add(Finding(str(error), stamp.name))
                continue
            finally:
                ctx.progress.advance(stamp.size)
            findings.count(1, 0, stamp.size)
            if packs:
                with lock:
                    listed.update((pack.name, (pack.size, stamp.name)) for pack in packs)

    spread(store.list(""), work, THREADS_REMOTE if store.caps.parallel > 4 else THREADS_LOCAL)
    dead = _dead(store, there, findings)
    for name, (size, run) in listed.items():
        if name not in there and name not in dead:
            findings.add(Finding(f"pack is missing that {run} lists", name))
        elif name in there and there[name] != size:
            findings.add(Finding(f"pack has {there[name]} bytes where {run} lists {size}", name))
    if Kind.VAULT.prefix not in there:
        findings.add(Finding("vault.json is missing", Kind.VAULT.prefix))
    return findings


def _read_stored(store: Store, stamp: Stamp, kind: Kind, buffer: memoryview) -> tuple[RunPack, ...]:
    """Read an object, whatever its size in memory of one piece, unless it is an index run; gives the packs that a run lists. DamageError."""
    if kind is Kind.INDEX and stamp.size > len(buffer):
        buffer = memoryview(bytearray(stamp.size))
    check = StoredCheck(stamp.name, stamp.size)
    for at in range(0, stamp.size, len(buffer) or 1):
        piece = buffer[: min(len(buffer), stamp.size - at)]
        store.read_into(stamp.name, at, piece)
        check.update(piece)
    if not check.right():
        raise DamageError("stored bytes are not what was written under this name", on=stamp.name)
    return read_run(open_object(stamp.name, bytes(buffer[: stamp.size]))).packs if kind is Kind.INDEX else ()


def _dead(store: Store, there: dict[str, int], findings: Findings) -> set[str]:
    """Packs that the gc chain calls dead; gaps and breaks in the chain are findings."""
    names = sorted(name for name in there if kind_of(name) is Kind.GC)
    dead: set[str] = set()
    before: tuple[int, bytes] | None = None
    if not names:
        findings.add(Finding("the gc chain is missing", gc_name(0)))
    for name in names:
        stored = store.get(name)
        try:
            record = decode(open_object(name, stored).payload, GcRecord, name)
        except DamageError:
            before = None
            continue
        if before is not None and (record.number != before[0] + 1 or record.previous != before[1]):
            findings.add(Finding("gc record does not follow the one before it", name))
        before = (record.number, blake3(stored).digest())
        dead.update(record.dead)
    return dead
