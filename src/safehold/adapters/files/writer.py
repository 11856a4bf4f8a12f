"""A process that writes small files for a restore: `python -m safehold.adapters.files.writer LINK MEMORY ROOT`, the three as descriptors.

It is told once where it is, then of one job after another: the slot of the shared memory in which the files' bytes lie, and after them the
list of the files. It answers each, and ends when nobody is at the other end.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
from typing import TypeVar

import msgspec

from safehold.adapters.files.target import DirectoryTarget
from safehold.adapters.files.walk import DirectoryFd
from safehold.model.errors import TargetError
from safehold.ports.tree import Piece, Problem

__all__ = ["SLOT", "SLOTS", "Failure", "Job", "Report", "Setup", "receive", "send"]

SLOT = 4 * 1024 * 1024
"""Bytes of a slot: a shared chunk of small files and the list of them."""

SLOTS = 2
"""One job at work, and one that waits."""

_LENGTH = struct.Struct("<I")


class Setup(msgspec.Struct, frozen=True, array_like=True):
    """What the target is called, and whether what lies in the way is replaced."""

    where: str
    replace: bool


class Job(msgspec.Struct, frozen=True, array_like=True):
    """The lengths of data and list in a slot."""

    slot: int
    data: int
    files: int


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """What ended the work, as in `model.errors`."""

    what: str
    on: str
    remedy: str


class Report(msgspec.Struct, frozen=True, array_like=True):
    """A job that is done: what of it could not be, and what makes the rest pointless."""

    slot: int
    problems: list[Problem]
    failure: Failure | None = None


_T = TypeVar("_T")


def send(link: socket.socket, message: msgspec.Struct) -> None:
    """Send one message. OSError."""
    body = msgspec.msgpack.encode(message)
    link.sendall(_LENGTH.pack(len(body)) + body)


def receive(link: socket.socket, kind: type[_T]) -> _T | None:
    """The next message, waiting for it; None where the other end is closed. OSError, and MsgspecError where it is another."""
    head = _exactly(link, _LENGTH.size)
    body = _exactly(link, _LENGTH.unpack(head)[0]) if head else None
    return None if body is None else msgspec.msgpack.decode(body, type=kind)


def _exactly(link: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        got = link.recv(count - len(data))
        if not got:
            return None
        data += got
    return bytes(data)


def _serve(link: socket.socket, memory: mmap.mmap, root: DirectoryFd) -> None:
    setup = receive(link, Setup)
    if setup is None:
        return
    target = DirectoryTarget(root, setup.where, replace=setup.replace)
    pieces = msgspec.msgpack.Decoder(list[Piece])
    view = memoryview(memory)
    while (job := receive(link, Job)) is not None:
        at = job.slot * SLOT
        data = view[at : at + job.data]
        failure = None
        try:
            target.write_pieces(data, pieces.decode(view[at + job.data : at + job.data + job.files]))
        except TargetError as error:
            failure = Failure(error.what, error.on, error.remedy)
        problems, target.problems = target.problems, []
        send(link, Report(job.slot, problems, failure))


def _main() -> None:
    # Files get the permissions that they are made with.
    os.umask(0)
    link, memory, root = (int(argument) for argument in sys.argv[1:])
    try:
        _serve(socket.socket(fileno=link), mmap.mmap(memory, SLOT * SLOTS), DirectoryFd(root))
    except ConnectionError:
        # The restore has gone.
        return


if __name__ == "__main__":
    _main()
