"""What a virtual machine has open: the process that answers for its agent is the one that runs it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from safehold.wire.peer import peer_process

__all__ = ["guest_processes", "has_open"]


def guest_processes(path: str) -> set[int]:
    """The processes that have the socket at `path`: who listened first, and who has it by now, for a manager may have handed it on. Those that
    cannot be seen from here are left out.
    """
    found = set()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(path)
            found.add(peer_process(connection))
        except OSError:
            pass
    inodes = _sockets_at(os.path.realpath(path))
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and inodes & _links(entry / "fd"):
            found.add(int(entry.name))
    # Zero stands for a process outside this namespace.
    return found - {0}


def _sockets_at(path: str) -> set[str]:
    try:
        lines = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return set()
    rows = [line.split(maxsplit=7) for line in lines]
    return {f"socket:[{row[6]}]" for row in rows if len(row) == 8 and row[7] == path}


def _links(place: Path) -> set[str]:
    try:
        return {os.readlink(place / name) for name in os.listdir(place)}
    except OSError:
        return set()


def has_open(process: int, wanted: Callable[[os.stat_result], bool]) -> bool:
    """True where a process has a file open that is `wanted`. PermissionError where that cannot be seen."""
    place = f"/proc/{process}/fd"
    try:
        names = os.listdir(place)
    except FileNotFoundError:
        return False
    for name in names:
        try:
            if wanted(os.stat(f"{place}/{name}")):
                return True
        except FileNotFoundError:
            continue
    return False
