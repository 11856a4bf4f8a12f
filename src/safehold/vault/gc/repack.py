"""Moves live chunks out of packs that are mostly garbage, and out of many small packs into few.

Records move as they are: neither their key nor their authenticated data names a pack. Each is opened and hashed on the way, so no damage is
carried along. Nothing is condemned here; until a gc record says so, the old packs count as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from safehold.model.context import Context
from safehold.model.errors import DamageError, StoreFull
from safehold.vault.bounds import largest_pack
from safehold.vault.fetch import NOT_THERE, ChunkReader
from safehold.vault.index.rows import Location
from safehold.vault.names import Kind, pack_name
from safehold.vault.pack import EMPTY_PACK, MAX_SESSIONS, PackRow, assemble, parse_header
from safehold.vault.records import Parameters, RunPack, SealedKey
from safehold.vault.sealing import RECORD_OVERHEAD, ChunkOpener
from safehold.vault.vault import Vault

__all__ = ["Moved", "live_in", "repack", "worth_moving"]

_SMALL_SHARE = 4
_MOST_SMALL = 64
_MOST_AT_ONCE = 4 * 1024**3
"""Bytes of live chunks that are moved together: where each lies is in memory meanwhile, some 300 bytes for each."""
_HOT = f"{Kind.PACK.prefix}/hot/"


def worth_moving(packs: dict[str, int], used: dict[str, int], parameters: Parameters) -> Iterator[frozenset[str]]:
    """Packs less than half of which is live, counting what a new pack takes beside its records, and where there are many small packs, those: in
    groups that are moved one after the other, the emptiest first. Only what can be read at once is moved, and what is no larger than a pack can
    be: it is read whole.
    """
    pack_size, most = parameters.pack_size, largest_pack(parameters)
    movable = {
        name: size
        for name, size in packs.items()
        if name in used and size <= most and name.startswith((_HOT, Kind.META.prefix + "/"))
    }
    sparse = {name for name, size in movable.items() if (used[name] + EMPTY_PACK) * 2 < size}
    small = {name for name, size in movable.items() if size * _SMALL_SHARE < pack_size}
    group: set[str] = set()
    size = 0
    for name in sorted(sparse | (small if len(small) > _MOST_SMALL else set()), key=lambda one: (used[one], one)):
        if group and size + used[name] > _MOST_AT_ONCE:
            yield frozenset(group)
            group, size = set(), 0
        group.add(name)
        size += used[name]
    if group:
        yield frozenset(group)


def live_in(
    packs: frozenset[str],
    live: Iterable[bytes],
    rows: Iterable[tuple[bytes, Location]],
    kept: Callable[[bytes, Location], bool],
) -> dict[str, list[tuple[bytes, Location]]]:
    """The live chunks that have to be moved out of each of these packs to empty it: not those that are `kept` at a place outside of them. The inputs
    ascend by id.
    """
    found: dict[str, list[tuple[bytes, Location]]] = {}
    source = iter(rows)
    row = next(source, None)
    for identity in live:
        while row is not None and row[0] < identity:
            row = next(source, None)
        inside: list[Location] = []
        outside: list[Location] = []
        while row is not None and row[0] == identity:
            (inside if row[1].pack in packs else outside).append(row[1])
            row = next(source, None)
        for at in inside:
            found.setdefault(at.pack, [])
        if inside and not any(kept(identity, at) for at in outside):
            found[inside[0].pack].append((identity, inside[0]))
    return found


@dataclass
class Moved:
    """New packs with the rows in each, and the old packs that are no longer needed for them; `full` where the store has no room for more."""

    packs: list[tuple[RunPack, list[PackRow]]] = field(default_factory=list)
    emptied: set[str] = field(default_factory=set)
    full: bool = False


@dataclass
class _Filling:
    """A pack in the making; `sources` are the packs of which it takes the last."""

    kind: Kind
    keys: list[SealedKey] = field(default_factory=list)
    records: list[tuple[bytes, Location, bytes, int]] = field(default_factory=list)
    size: int = 0
    sources: set[str] = field(default_factory=set)


def repack(vault: Vault, chunks: ChunkReader, found: dict[str, list[tuple[bytes, Location]]], ctx: Context) -> Moved:
    """Store the chunks of `found` (by pack) in new packs. A pack that cannot be read whole is left as it is, and so are those for which the store
    has no room.
    """
    moved = Moved()
    try:
        for kind in (Kind.PACK, Kind.META):
            _repack_kind(vault, chunks, kind, found, moved, ctx)
    except StoreFull as error:
        ctx.progress.warn(f"packs that are mostly garbage are left as they are until there is room: {error}")
        moved.full = True
    return moved


def _repack_kind(
    vault: Vault,
    chunks: ChunkReader,
    kind: Kind,
    found: dict[str, list[tuple[bytes, Location]]],
    moved: Moved,
    ctx: Context,
) -> None:
    opener = ChunkOpener(vault.id)
    filling = _Filling(kind)
    mine = [(pack, rows) for pack, rows in sorted(found.items()) if pack.startswith(kind.prefix + "/")]
    for pack, rows in mine:
        ctx.cancel.check()
        if not rows:
            moved.emptied.add(pack)
            continue
        try:
            records = list(_records(vault, pack, rows, chunks, opener))
        except NOT_THERE as error:
            ctx.progress.warn(f"a pack is left as it is: {error}")
            continue
        for identity, location, record, key in records:
            full = filling.size + len(record) > vault.parameters.pack_size
            if filling.records and (full or (key not in filling.keys and len(filling.keys) == MAX_SESSIONS)):
                _store(vault, filling, moved)
                filling = _Filling(kind)
            if key not in filling.keys:
                filling.keys.append(key)
            filling.records.append((identity, location, record, filling.keys.index(key)))
            filling.size += len(record)
        filling.sources.add(pack)
    _store(vault, filling, moved)


def _records(
    vault: Vault, pack: str, rows: list[tuple[bytes, Location]], chunks: ChunkReader, opener: ChunkOpener
) -> Iterator[tuple[bytes, Location, bytes, SealedKey]]:
    """The records of some chunks in a pack, each seen to be what its id says. DamageError."""
    data = vault.store.get(pack)
    header = parse_header(data, vault.id, pack)
    if header is None:
        raise DamageError("pack is shorter than its header", on=pack)
    for identity, location in rows:
        record = data[location.offset : location.offset + location.stored]
        slot = int.from_bytes(record[:2], "little")
        if len(record) != location.stored or len(record) < RECORD_OVERHEAD or slot >= len(header.sessions):
            raise DamageError("pack does not hold what its index run says", on=pack)
        key = header.sessions[slot]
        secret = vault.session_secret(key, on=pack)
        try:
            opener.open(
                memoryview(record), header.kind, identity, location.codec, location.plain, secret, chunks.dedup_key
            )
        except ValueError as error:
            raise DamageError(f"chunk {identity.hex()[:16]} {error}", on=pack) from error
        yield identity, location, record, key


def _store(vault: Vault, filling: _Filling, moved: Moved) -> None:
    if not filling.records:
        return
    secret = vault.session_secret(filling.keys[0], on="repacked pack")
    data, rows = assemble(filling.kind, vault.id, filling.keys, secret.session_key, filling.records)
    name = pack_name(filling.kind, blake3(data).digest(), "hot")
    vault.store.put(name, [data])
    moved.emptied |= filling.sources
    moved.packs.append((RunPack(name, len(data)), rows))
