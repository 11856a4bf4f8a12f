"""Processes that write small files.

Making a small file is half a dozen short calls. Threads would take turns at the interpreter's lock around each of them, and two write hardly
more than one; two processes write twice as much. They get a descriptor of the directory and the files' bytes, and no key.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from safehold.adapters.files.walk import DirectoryFd
from safehold.adapters.files.writer import SLOT, SLOTS, Job, Report, Setup, receive, send
from safehold.model.errors import TargetError
from safehold.ports.tree import Piece, Problem

__all__ = ["FileWriters"]

_PROGRAM = (sys.executable, "-I", "-m", "safehold.adapters.files.writer")


@dataclass
class _Writer:
    """A process, what connects to it, and the slots of the memory shared with it that it is not at work on."""

    process: subprocess.Popen[bytes]
    link: socket.socket
    memory: mmap.mmap
    free: list[int]


class FileWriters:
    """Thread-safe. `close` ends the processes; one that ends by itself fails the restore."""

    def __init__(self, root: DirectoryFd, where: str, *, replace: bool, count: int) -> None:
        """`count` processes that write below `root`, which people know as `where`. TargetError where they cannot be started."""
        self._where = where
        self._lock = threading.Lock()
        self._problems: list[Problem] = []
        self._failure: TargetError | None = None
        self._writers: list[_Writer] = []
        try:
            for _ in range(count):
                self._writers.append(_start(root.fd, Setup(where, replace)))
        except OSError as error:
            self.close()
            raise TargetError(
                f"processes that write files cannot be started ({error.strerror})",
                on=where,
                remedy="free some memory, then restore again",
            ) from error

    def write(self, data: memoryview, files: Sequence[Piece]) -> bool:
        """Hand files in, to be written by the time `settle` returns; false where they do not fit. TargetError with what an earlier one failed
        with.
        """
        job = msgspec.msgpack.encode(files)
        if len(data) + len(job) > SLOT:
            return False
        writer, slot = self._take()
        at = slot * SLOT
        writer.memory[at : at + len(data)] = data
        writer.memory[at + len(data) : at + len(data) + len(job)] = job
        with self._lock:
            try:
                send(writer.link, Job(slot, len(data), len(job)))
            except OSError as error:
                raise self._ended(writer) from error
        return True

    def _take(self) -> tuple[_Writer, int]:
        """A slot of the process that has the least to do, waiting for one."""
        with self._lock:
            while True:
                if self._failure is not None:
                    raise self._failure
                writer = max(self._writers, key=lambda w: len(w.free))
                if writer.free:
                    return writer, writer.free.pop()
                self._hear()

    def _hear(self) -> None:
        """Wait for a process to finish something."""
        poll = select.poll()
        for writer in self._writers:
            poll.register(writer.link, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        for writer in self._writers:
            if writer.link.fileno() in ready:
                try:
                    report = receive(writer.link, Report)
                except (OSError, msgspec.MsgspecError) as error:
                    raise self._ended(writer) from error
                if report is None:
                    raise self._ended(writer)
                writer.free.append(report.slot)
                self._problems += report.problems
                if report.failure is not None:
                    self._failure = TargetError(report.failure.what, on=report.failure.on, remedy=report.failure.remedy)

    def _ended(self, writer: _Writer) -> TargetError:
        writer.link.close()
        code = writer.process.wait()
        self._failure = TargetError(
            f"a process that wrote files ended {f'by signal {-code}' if code < 0 else f'with status {code}'}",
            on=self._where,
            remedy="restore again with --delta",
        )
        return self._failure

    def settle(self) -> list[Problem]:
        """Wait until all files are written; returns the problems since the last time. TargetError."""
        with self._lock:
            while self._failure is None and any(len(writer.free) < SLOTS for writer in self._writers):
                self._hear()
            if self._failure is not None:
                raise self._failure
            problems, self._problems = self._problems, []
            return problems

    def close(self) -> None:
        """End the processes, each with what it is at."""
        for writer in self._writers:
            writer.link.close()
        for writer in self._writers:
            writer.process.wait()


@contextlib.contextmanager
def _without_stops() -> Iterator[None]:
    """A process that is started keeps what is blocked: a stop that a service manager or a terminal sends to all is for the restore to heed,
    which then closes the link.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(root: int, setup: Setup) -> _Writer:
    memory = os.memfd_create("safehold-writer")
    try:
        os.ftruncate(memory, SLOT * SLOTS)
        mine, theirs = socket.socketpair()
        with theirs, _without_stops():
            process = subprocess.Popen(
                [*_PROGRAM, str(theirs.fileno()), str(memory), str(root)],
                pass_fds=(theirs.fileno(), memory, root),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
        send(mine, setup)
        return _Writer(process, mine, mmap.mmap(memory, SLOT * SLOTS), list(range(SLOTS)))
    finally:
        os.close(memory)
