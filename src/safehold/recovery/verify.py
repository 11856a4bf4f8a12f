"""Proves that a vault holds what its points need: by their structure, by their data, or by every stored byte."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectNotFound, ShortRead
from safehold.model.spread import spread
from safehold.ports.store import Stamp, Store
from safehold.recovery.disk import THREADS_LOCAL, THREADS_REMOTE
from safehold.vault.catalogue import Point
from safehold.vault.disk import StoredDisk
from safehold.vault.envelope import decode, open_object, stored_as_named
from safehold.vault.names import ZERO_ID, Kind, gc_name, kind_of
from safehold.vault.records import GcRecord
from safehold.vault.run import read_run
from safehold.vault.vault import Vault

__all__ = ["Finding", "Findings", "verify_data", "verify_stored", "verify_structure"]

_SEEN = 1_000_000
"""Ids remembered so that shared blocks are read once: about 100 MB at most, after which some are read again."""

_BATCH = 512


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
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, finding: Finding) -> None:
        """Note something wrong."""
        with self._lock:
            self.found.append(finding)

    def count(self, checked: int, logical: int, stored: int) -> None:
        """Note what was looked at: objects or chunks, bytes of disks, bytes read from the vault."""
        with self._lock:
            self.checked += checked
            self.logical += logical
            self.stored += stored


def verify_structure(vault: Vault, points: Iterable[Point], ctx: Context) -> Findings:
    """Everything that the points need is named by an index run or a pack and lies in the store with the size it
    should have.
    """
    findings = Findings()
    gone: dict[bytes, str] = {}
    sizes = {s.name: s.size for prefix in (Kind.PACK, Kind.META) for s in vault.store.list(prefix.prefix + "/")}
    seen: set[bytes] = set()
    for point in points:
        for disk in _disks(vault, point, findings):
            _structure(point, disk, sizes, seen, gone, findings, ctx)
    return findings


def _disks(vault: Vault, point: Point, findings: Findings) -> Iterator[StoredDisk]:
    for member in point.body.members:
        try:
            yield vault.disk(point, member)
        except DamageError as error:
            findings.add(Finding(error.what, error.on, point.id))


def _structure(
    point: Point,
    disk: StoredDisk,
    sizes: dict[str, int],
    seen: set[bytes],
    gone: dict[bytes, str],
    findings: Findings,
    ctx: Context,
) -> None:
    try:
        for first, count, data in disk.tree.runs():
            ctx.cancel.check()
            if not data:
                findings.count(0, count * disk.block_size, 0)
                continue
            for at in range(first, first + count, _BATCH):
                ids = disk.tree.block_ids(at, min(_BATCH, first + count - at))
                fresh = [identity for identity in ids if identity not in seen]
                for identity, location in zip(fresh, disk.finder.find_many(fresh), strict=True):
                    places = [location] if location else disk.finder.locations(identity)
                    if not any(_present(place.pack, place.offset + place.stored, sizes) for place in places if place):
                        places = disk.finder.locations(identity)
                    if not any(_present(place.pack, place.offset + place.stored, sizes) for place in places if place):
                        gone[identity] = ", ".join(sorted({place.pack for place in places if place})) or "no pack"
                for identity in dict.fromkeys(ids) if gone else ():
                    if identity in gone:
                        what = f"chunk {identity.hex()[:16]} is gone: {gone[identity]}"
                        findings.add(Finding(what, disk.member.name, point.id))
                if len(seen) < _SEEN:
                    seen.update(fresh)
                findings.count(len(ids), len(ids) * disk.block_size, 0)
    except DamageError as error:
        findings.add(Finding(error.what, error.on, point.id))


def _present(pack: str, end: int, sizes: dict[str, int]) -> bool:
    return sizes.get(pack, -1) >= end


def verify_data(vault: Vault, points: Iterable[Point], ctx: Context) -> Findings:
    """Every block of every point is fetched, decrypted and hashed; blocks that points share are read once."""
    findings = Findings()
    seen: set[bytes] = set()
    bad: dict[bytes, str] = {}
    for point in points:
        for disk in _disks(vault, point, findings):
            try:
                _data(point, disk, seen, bad, findings, ctx)
            except DamageError as error:
                findings.add(Finding(error.what, error.on, point.id))
    return findings


def _data(
    point: Point, disk: StoredDisk, seen: set[bytes], bad: dict[bytes, str], findings: Findings, ctx: Context
) -> None:
    step = max(1, 8 * 1024 * 1024 // disk.block_size)
    lock = threading.Lock()

    def windows() -> Iterator[list[tuple[int, bytes]]]:
        for first, count, data in disk.tree.runs():
            if not data:
                findings.count(0, min((first + count) * disk.block_size, disk.size) - first * disk.block_size, 0)
                ctx.progress.advance(count * disk.block_size)
                continue
            for at in range(first, first + count, step):
                yield list(enumerate(disk.tree.block_ids(at, min(step, first + count - at)), at))

    def work(share: Iterator[list[tuple[int, bytes]]]) -> None:
        for window in share:
            ctx.cancel.check()
            with lock:
                fresh = [
                    (block, identity) for block, identity in window if identity not in seen and identity != ZERO_ID
                ]
                if len(seen) < _SEEN:
                    seen.update(identity for _, identity in fresh)
            for lost in disk.check([identity for _, identity in fresh]):
                bad[lost.identity] = lost.reason
            if bad:
                # A bad block hurts every point that has it, not only the one in which it was read.
                for block, identity in window:
                    if identity in bad:
                        what = f"bytes from {block * disk.block_size} cannot be read: {bad[identity]}"
                        findings.add(Finding(what, disk.member.name, point.id))
            findings.count(len(fresh), len(window) * disk.block_size, len(fresh) * disk.block_size)
            ctx.progress.advance(len(window) * disk.block_size)

    spread(windows(), work, THREADS_REMOTE if disk.remote else THREADS_LOCAL)


def verify_stored(store: Store, ctx: Context) -> Findings:
    """Every object is what its name says, and every pack that an index run lists is there: no key is needed.

    What it cannot see: objects that vanished together with everything that names them, and an older state of the
    whole vault.
    """
    findings = Findings()
    listed: dict[str, tuple[int, str]] = {}
    there: dict[str, int] = {}
    lock = threading.Lock()

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
            if len(buffer) < stamp.size:
                buffer = bytearray(stamp.size)
            data = memoryview(buffer)[: stamp.size]
            try:
                store.read_into(stamp.name, 0, data)
            except (ObjectNotFound, ShortRead) as error:
                findings.add(Finding(str(error), stamp.name))
                continue
            findings.count(1, 0, stamp.size)
            ctx.progress.advance(stamp.size)
            if not stored_as_named(stamp.name, data):
                findings.add(Finding("stored bytes are not what was written under this name", stamp.name))
            elif kind is Kind.INDEX:
                packs = read_run(open_object(stamp.name, bytes(data))).packs
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
