"""Writes a stored disk onto a target: all of it, or only what differs."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat

from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.model.spread import spread
from safehold.ports.blocks import MutableBlocks
from safehold.vault.disk import StoredDisk
from safehold.vault.disk_tree import Run
from safehold.vault.fetch import Lost
from safehold.vault.names import ZERO_ID
from safehold.vault.node import read_ids
from safehold.vault.sealing import chunk_id

__all__ = ["Losses", "Written", "write_differences", "write_disk"]

THREADS_LOCAL, THREADS_REMOTE = 2, 8
"""Two threads fill two cores; a remote store needs more requests under way than there are cores."""

_WINDOW = 8 * 1024 * 1024


@dataclass
class Losses:
    """Collects blocks that could not be read; `salvage` false makes the first ones end the restore. Thread-safe."""

    salvage: bool
    ranges: list[tuple[int, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, disk: StoredDisk, lost: list[Lost]) -> None:
        """Note blocks of `disk` as lost; DamageError, naming the objects and the byte ranges, unless this is a
        salvage.
        """
        if lost:
            self._note(disk, [(one.position, 1, one.reason) for one in sorted(lost, key=lambda one: one.position)])

    def add_run(self, disk: StoredDisk, run: Run) -> None:
        """Note what lies below a page of the disk that cannot be read. DamageError as above."""
        self._note(disk, [(run.first, run.count, run.lost)])

    def _note(self, disk: StoredDisk, lost: list[tuple[int, int, str]]) -> None:
        with self._lock:
            for first, count, reason in lost:
                start, end = disk.span(first, count)
                if self.ranges and self.ranges[-1][1] == start:
                    self.ranges[-1] = (self.ranges[-1][0], end)
                else:
                    self.ranges.append((start, end))
                if reason not in self.reasons:
                    self.reasons.append(reason)
            if not self.salvage:
                raise DamageError(
                    f"bytes {self.spelled()} cannot be read: {'; '.join(self.reasons[:3])}",
                    on=disk.member.name,
                    remedy="restore another point, or go on without these bytes: --salvage",
                )

    def spelled(self) -> str:
        """The ranges as text, in order and joined."""
        return ", ".join(f"{start}-{end - 1}" for start, end in _joined(self.ranges))

    @property
    def total(self) -> int:
        """Bytes lost."""
        return sum(end - start for start, end in self.ranges)


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, with neighbours made one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] >= start:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _ranges(disk: StoredDisk, blocks: list[int]) -> list[tuple[int, int]]:
    """The bytes of blocks, neighbours joined."""
    return _joined([disk.span(block, 1) for block in blocks])


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes that a restore wrote as data, zeroed, and left alone because they were right already."""

    data: int
    zeroed: int
    kept: int


def _threads(disk: StoredDisk) -> int:
    return THREADS_REMOTE if disk.remote else THREADS_LOCAL


def _windows(disk: StoredDisk, losses: Losses) -> Iterator[tuple[int, int, bool]]:
    """What of the disk can be told, as (first block, count, has data); data in pieces of bounded length."""
    step = max(1, _WINDOW // disk.block_size)
    for run in disk.tree.runs():
        if run.lost:
            losses.add_run(disk, run)
        elif not run.data:
            yield run.first, run.count, False
        else:
            for at in range(run.first, run.first + run.count, step):
                yield at, min(step, run.first + run.count - at), True


def _steps(disk: StoredDisk, losses: Losses) -> Iterator[tuple[int, int]]:
    """What of the disk can be told, data or not, as (first block, count) of bounded length."""
    step = max(1, _WINDOW // disk.block_size)
    at = end = 0
    for run in disk.tree.runs():
        if run.lost:
            losses.add_run(disk, run)
            if at < end:
                yield at, end - at
            at = end = run.first + run.count
            continue
        end = run.first + run.count
        while end - at >= step:
            yield at, step
            at += step
    if at < end:
        yield at, end - at


class _WindowWriter:
    """Fills one window while the one before is being written, so that neither the processor nor the disk waits for the other.

    One for each thread. Its buffers are anonymous maps: they start on a page, so the disk can take them without a copy.
    """

    def __init__(self, disk: StoredDisk, target: MutableBlocks, losses: Losses) -> None:
        self._disk, self._target, self._losses = disk, target, losses
        size = max(_WINDOW, disk.block_size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._buffers = [memoryview(mmap.mmap(-1, size, flags=flags)) for _ in range(2)]
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None

    def __enter__(self) -> _WindowWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.shutdown(wait=True)

    def write(self, first: int, count: int) -> tuple[int, int]:
        """Fetch blocks and begin to write them; returns the bytes of data and of zeros among them. Raises what the write before failed
        with.
        """
        disk = self._disk
        base = first * disk.block_size
        buffer = self._buffers[0]
        read = disk.read_blocks(first, count, buffer[: min(count * disk.block_size, disk.size - base)])
        self._losses.add(disk, read.lost)
        zeros = _ranges(disk, read.zeros)
        for start, end in zeros:
            self._target.write_zeroes(start, end - start)
        good = _ranges(disk, read.data)
        self.wait()
        self._buffers.reverse()
        self._writing = self._writer.submit(self._write, base, buffer, good)
        return sum(end - start for start, end in good), sum(end - start for start, end in zeros)

    def _write(self, base: int, buffer: memoryview, ranges: list[tuple[int, int]]) -> None:
        for start, end in ranges:
            self._target.write(start, buffer[start - base : end - base])

    def wait(self) -> None:
        """Return when everything begun is written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def write_disk(disk: StoredDisk, target: MutableBlocks, losses: Losses, ctx: Context) -> Written:
    """Write every byte of the disk; holes are zeroed on the target, whatever was there. Durable when it returns."""
    totals = []

    def work(share: Iterator[tuple[int, int, bool]]) -> None:
        wrote = zeroed = 0
        with _WindowWriter(disk, target, losses) as writer:
            for first, count, data in share:
                ctx.cancel.check()
                start = first * disk.block_size
                length = min(count * disk.block_size, disk.size - start)
                if data:
                    data_bytes, zero_bytes = writer.write(first, count)
                    wrote, zeroed = wrote + data_bytes, zeroed + zero_bytes
                else:
                    target.write_zeroes(start, length)
                    zeroed += length
                ctx.progress.advance(length)
            writer.wait()
        totals.append((wrote, zeroed))

    spread(_windows(disk, losses), work, _threads(disk))
    target.flush()
    return Written(sum(w for w, _ in totals), sum(z for _, z in totals), 0)


def write_differences(disk: StoredDisk, target: MutableBlocks, losses: Losses, ctx: Context) -> Written:
    """Make the target equal to the disk, fetching and writing only blocks whose hash differs. Durable when it
    returns.
    """
    totals = []
    step = max(1, _WINDOW // disk.block_size)

    def work(share: Iterator[tuple[int, int]]) -> None:
        buffer = bytearray(step * disk.block_size)
        wrote = zeroed = kept = 0
        with _WindowWriter(disk, target, losses) as writer:
            for first, count in share:
                ctx.cancel.check()
                start, end = disk.span(first, count)
                length = end - start
                view = memoryview(buffer)[:length]
                target.read_into(start, view)
                wrong = [n for n, same in enumerate(_same(disk, first, view)) if not same]
                kept += length
                for at, many in _runs(wrong):
                    size = min(many * disk.block_size, length - at * disk.block_size)
                    data_bytes, zero_bytes = writer.write(first + at, many)
                    wrote, zeroed, kept = wrote + data_bytes, zeroed + zero_bytes, kept - size
                ctx.progress.advance(length)
            writer.wait()
        totals.append((wrote, zeroed, kept))

    spread(_steps(disk, losses), work, _threads(disk))
    target.flush()
    return Written(sum(t[0] for t in totals), sum(t[1] for t in totals), sum(t[2] for t in totals))


def _same(disk: StoredDisk, first: int, view: memoryview) -> Iterator[bool]:
    """For each block that `view` holds whether it is right. One that cannot be told is not: who fetches it will find out."""
    size = disk.block_size
    for piece in disk.tree.look_up(first, -(-len(view) // size)):
        if piece.lost:
            yield from repeat(False, piece.count)
        for block, identity in enumerate(read_ids(piece.ids), piece.first):
            there = view[(block - first) * size : (block - first + 1) * size]
            if identity == ZERO_ID:
                yield not bytes(there).strip(b"\0")
            else:
                yield chunk_id(disk.dedup_key, there) == identity


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = length = 0
    for number in numbers:
        if length and number == start + length:
            length += 1
            continue
        if length:
            yield start, length
        start, length = number, 1
    if length:
        yield start, length
