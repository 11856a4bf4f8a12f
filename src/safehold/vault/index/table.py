"""A sorted table of rows in a file, searched with one small read for each id.

    file   = "SHIX0001" ‖ u32 header length ‖ header (MessagePack) ‖ BLAKE3(header ‖ fan-out ‖ packs) ‖ fan-out ‖ packs ‖ rows
    packs  = u16 number of the prefix in the header ‖ 32-byte digest, for each pack
    rows   = 48-byte rows in ascending order

Rows themselves carry no checksum: the id in a row is 32 bytes of a keyed hash, so a damaged one is never taken for
another chunk's, and whoever reads a chunk hashes it again.
"""

from __future__ import annotations

import heapq
import os
import struct
import tempfile
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from safehold.model.shown import in_words
from safehold.model.writing import write_all
from safehold.vault.index.rows import ID_SIZE, PLAIN_BITS, ROW, Location

__all__ = ["BrokenTable", "SortedTable", "combine", "merge_tables", "table_of", "write_table"]

_MAGIC = b"SHIX0001"
_PACK = struct.Struct("<H32s")
_BUCKET = 24
"""Rows in a bucket on average: about 1 KiB, one read."""
_MAX_BITS = 22
_BLOCK = 8192 * ROW.size
_PREFIX_BITS = 32
_PLAIN = (1 << PLAIN_BITS) - 1
_NAMES_READ = 4096
"""Pack names that are read at once."""
_NAMES_HELD = 100_000
"""Pack names of a table held in memory, about 15 MB; beyond that they are read again."""


class BrokenTable(Exception):
    """A table file that is not whole; the cache drops it."""


class _Header(msgspec.Struct, frozen=True):
    runs: tuple[str, ...]
    prefixes: tuple[str, ...]
    packs: int
    rows: int
    bits: int


def _bits_for(rows: int) -> int:
    return max(4, min(_MAX_BITS, (rows // _BUCKET).bit_length()))


class SortedTable:
    """An open table. Thread-safe: it only reads, each time at an explicit offset."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`. BrokenTable where the file is not whole."""
        # Only a table that turns out to be whole takes the descriptor over.
        self._fd = -1
        size = os.fstat(fd).st_size
        start = os.pread(fd, len(_MAGIC) + 4, 0)
        if start[: len(_MAGIC)] != _MAGIC or len(start) < len(_MAGIC) + 4:
            raise BrokenTable("no table")
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        at = len(start)
        if length > size:
            raise BrokenTable("header longer than the file")
        raw = os.pread(fd, length, at)
        digest = os.pread(fd, 32, at + length)
        at += length + 32
        try:
            header = msgspec.msgpack.decode(raw, type=_Header)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BrokenTable(str(error)) from error
        if not 0 < header.bits <= _MAX_BITS or header.packs < 0 or header.rows < 0:
            raise BrokenTable("impossible header")
        fan_size, pack_size = ((1 << header.bits) + 1) * 4, header.packs * _PACK.size
        if size != at + fan_size + pack_size + header.rows * ROW.size:
            raise BrokenTable("wrong size")
        fan = os.pread(fd, fan_size, at)
        hasher = blake3(raw)
        hasher.update(fan)
        self._packs_at = at + fan_size
        for offset in range(0, pack_size, _BLOCK):
            hasher.update(os.pread(fd, min(_BLOCK, pack_size - offset), self._packs_at + offset))
        if hasher.digest() != digest:
            raise BrokenTable("checksum")
        self._fd = fd
        self._fan = array("I", fan)
        self._rows_at = self._packs_at + pack_size
        self._shift = _PREFIX_BITS - header.bits
        self._header = header
        self.runs, self.rows, self.packs = header.runs, header.rows, header.packs
        self._names: dict[int, str] = {}

    @classmethod
    def open(cls, path: Path) -> SortedTable:
        """BrokenTable where the file is missing or not whole."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BrokenTable(in_words(error)) from error
        try:
            return cls(fd)
        except (BrokenTable, OSError) as error:
            os.close(fd)
            raise BrokenTable(in_words(error)) from error

    def close(self) -> None:
        """Close the file; also done when the table is no longer referred to."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def pack(self, number: int) -> str:
        """The object name of a pack."""
        name = self._names.get(number)
        if name is None:
            prefix, digest = _PACK.unpack(os.pread(self._fd, _PACK.size, self._packs_at + number * _PACK.size))
            text = digest.hex()
            name = f"{self._header.prefixes[prefix]}/{text[:2]}/{text}"
            if len(self._names) >= _NAMES_HELD:
                self._names = {}
            self._names[number] = name
        return name

    def pack_names(self) -> Iterator[str]:
        """All packs in order of their numbers."""
        size = self.packs * _PACK.size
        step = _NAMES_READ * _PACK.size
        for offset in range(0, size, step):
            data = os.pread(self._fd, min(step, size - offset), self._packs_at + offset)
            for prefix, digest in _PACK.iter_unpack(data):
                text = digest.hex()
                yield f"{self._header.prefixes[prefix]}/{text[:2]}/{text}"

    def fill(self, identities: Sequence[bytes], found: list[Location | None], excluded: Container[str]) -> None:
        """Put a location outside of the `excluded` packs wherever `found`, which goes along with `identities`, has none."""
        # One loop without calls of our own: a backup asks for each of its chunks here, and most tables have no answer.
        fd, fan, shift, start, size = self._fd, self._fan, self._shift, self._rows_at, ROW.size
        read, number = os.pread, int.from_bytes
        for position, identity in enumerate(identities):
            if found[position] is not None:
                continue
            bucket = number(identity[:4], "big") >> shift
            low, high = fan[bucket], fan[bucket + 1]
            if low == high:
                continue
            data = read(fd, (high - low) * size, start + low * size)
            at = data.find(identity)
            if at < 0:
                continue
            location = self._location(data, at) if at % size == 0 else None
            if location is None or location.pack in excluded:
                # Rare: the bytes of the id across two rows, or a copy that does not count.
                location = next((other for other in self.find(identity) if other.pack not in excluded), None)
            found[position] = location

    def find(self, identity: bytes) -> Iterator[Location]:
        """Every location of a chunk."""
        bucket = int.from_bytes(identity[:4], "big") >> self._shift
        low, high = self._fan[bucket], self._fan[bucket + 1]
        if low == high:
            return
        data = os.pread(self._fd, (high - low) * ROW.size, self._rows_at + low * ROW.size)
        at = data.find(identity)
        while at >= 0:
            if at % ROW.size == 0:
                yield self._location(data, at)
            at = data.find(identity, at + 1)

    def _location(self, data: bytes, at: int) -> Location:
        """Of the row at `at`."""
        _, pack, offset, stored, mixed = ROW.unpack_from(data, at)
        return Location(self._names.get(pack) or self.pack(pack), offset, stored, mixed & _PLAIN, mixed >> PLAIN_BITS)

    def locations(self) -> Iterator[tuple[bytes, Location]]:
        """All rows in order, as id and location."""
        name = self.pack
        for row in self:
            identity, pack, offset, stored, mixed = ROW.unpack(row)
            yield identity, Location(name(pack), offset, stored, mixed & _PLAIN, mixed >> PLAIN_BITS)

    def __iter__(self) -> Iterator[bytes]:
        """All rows in order, 48 bytes each."""
        end = self.rows * ROW.size
        for offset in range(0, end, _BLOCK):
            data = os.pread(self._fd, min(_BLOCK, end - offset), self._rows_at + offset)
            for at in range(0, len(data), ROW.size):
                yield data[at : at + ROW.size]


def write_table(
    directory: Path, runs: Sequence[str], packs: Iterable[str], rows: Iterable[bytes], count: int, keep: str | None
) -> SortedTable:
    """Write sorted `rows` (`count` of them) as a table in `directory`: under the name `keep`, or without any name.

    The name appears only when the file is whole.
    """
    fd, temporary = tempfile.mkstemp(prefix=".new-", dir=directory)
    try:
        prefixes: dict[str, int] = {}
        pack_bytes = bytearray()
        for name in packs:
            prefix, digest = name.rsplit("/", 2)[0], name.rsplit("/", 1)[1]
            pack_bytes += _PACK.pack(prefixes.setdefault(prefix, len(prefixes)), bytes.fromhex(digest))
        bits = _bits_for(count)
        header = msgspec.msgpack.encode(
            _Header(tuple(runs), tuple(prefixes), len(pack_bytes) // _PACK.size, count, bits)
        )
        fan = array("I", bytes(4 * ((1 << bits) + 1)))
        fan_at = len(_MAGIC) + 4 + len(header) + 32
        rows_at = fan_at + len(fan) * 4 + len(pack_bytes)
        _write_rows(fd, rows_at, rows, fan, bits)
        if fan[-1] != count:
            raise ValueError(f"{fan[-1]} rows where {count} were announced")
        hasher = blake3(header)
        hasher.update(fan.tobytes())
        hasher.update(pack_bytes)
        front = _MAGIC + struct.pack("<I", len(header)) + header + hasher.digest() + fan.tobytes() + pack_bytes
        write_all(fd, 0, front)
        os.ftruncate(fd, rows_at + count * ROW.size)
        if keep is not None:
            os.replace(temporary, directory / keep)
        else:
            os.unlink(temporary)
        return SortedTable(fd)
    except BaseException:
        os.close(fd)
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _write_rows(fd: int, at: int, rows: Iterable[bytes], fan: array[int], bits: int) -> None:
    """Write rows from offset `at` and fill the fan-out: entry n is the number of rows before bucket n."""
    block = bytearray()
    shift = _PREFIX_BITS - bits
    bucket = written = 0
    for row in rows:
        of_row = int.from_bytes(row[:4], "big") >> shift
        while bucket < of_row:
            bucket += 1
            fan[bucket] = written
        block += row
        written += 1
        if len(block) >= _BLOCK:
            write_all(fd, at, block)
            at += len(block)
            block.clear()
    write_all(fd, at, block)
    while bucket < (1 << bits):
        bucket += 1
        fan[bucket] = written


def table_of(
    directory: Path,
    runs: Sequence[str],
    packs: Sequence[str],
    rows: bytes | bytearray,
    wanted: Sequence[bool],
    keep: str | None,
) -> SortedTable:
    """A table of the rows of a run, end to end as they stand in it. Rows of packs that are not `wanted`, which goes along with `packs`, and of
    packs that the run does not name are left out. See `write_table`.
    """
    # A writer's word is not taken for the order. What is in order, and that is nearly always so, is never a list of a million rows.
    count, ascending, before = 0, True, b""
    for row in _wanted(rows, wanted):
        count += 1
        ascending = ascending and before <= row
        before = row
    ordered = _wanted(rows, wanted) if ascending else sorted(_wanted(rows, wanted))
    return write_table(directory, runs, packs, ordered, count, keep)


def _wanted(rows: bytes | bytearray, wanted: Sequence[bool]) -> Iterator[bytes]:
    known = len(wanted)
    for at in range(0, len(rows), ROW.size):
        row = bytes(rows[at : at + ROW.size])
        number = int.from_bytes(row[ID_SIZE : ID_SIZE + 4], "little")
        if number < known and wanted[number]:
            yield row


def combine(tables: Sequence[SortedTable]) -> tuple[list[str], Iterator[bytes]]:
    """All packs of several tables, each named once, and all rows in order, numbered by them.

    Each row of a base run's table may lie in any pack, so that most tables of a large vault name all of them: what is held here are the
    packs of the vault, about 250 bytes for each, and not those of every table.
    """
    numbers: dict[str, int] = {}
    streams: list[Iterable[bytes]] = []
    for table in tables:
        mapping = array("I", (numbers.setdefault(name, len(numbers)) for name in table.pack_names()))
        same = all(number == position for position, number in enumerate(mapping))
        streams.append(table if same else _renumbered(table, mapping))
    return list(numbers), heapq.merge(*streams)


def merge_tables(directory: Path, tables: Sequence[SortedTable], keep: str | None) -> SortedTable:
    """One table of all rows, in memory that depends on the number of packs alone."""
    packs, rows = combine(tables)
    runs = [run for table in tables for run in table.runs]
    return write_table(directory, runs, packs, rows, sum(t.rows for t in tables), keep)


def _renumbered(table: SortedTable, mapping: array[int]) -> Iterator[bytes]:
    for row in table:
        number = mapping[int.from_bytes(row[ID_SIZE : ID_SIZE + 4], "little")]
        yield row[:ID_SIZE] + number.to_bytes(4, "little") + row[ID_SIZE + 4 :]
