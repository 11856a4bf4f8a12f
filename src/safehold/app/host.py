"""The machine that makes backups, and its processes."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["UNKNOWN", "Host", "process_start", "this_host"]

UNKNOWN = -1
"""The start of a process that is there and cannot be looked at."""


@dataclass(frozen=True)
class Host:
    """Who makes the backup: a name for people, an id that stays with the machine, and the boot that is running."""

    name: str
    id: str
    boot: str


def this_host(state: Path) -> Host:
    """This machine.

    Its id is what the file `host-id` in `state` says (a rebuilt host that got its state back goes on as the same one), else the
    operating system's machine id, else one that is made up once and kept.
    """
    return Host(socket.gethostname(), _host_id(state), _boot())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _boot() -> str:
    """The running boot and, as containers share it, the namespace that process numbers are of."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{_read(Path('/proc/sys/kernel/random/boot_id'))}/{namespace}"


def _host_id(state: Path) -> str:
    known = _read(state / "host-id") or _read(Path("/etc/machine-id"))
    if not known:
        known = os.urandom(16).hex()
        # Without a place to keep it, this machine is another one each time; better that than no backup.
        with contextlib.suppress(OSError):
            state.mkdir(parents=True, exist_ok=True, mode=0o700)
            (state / "host-id").write_text(known + "\n")
    return known


def process_start(pid: int) -> int:
    """When a process of this host started, in clock ticks since boot; 0 where there is none, UNKNOWN where that cannot be seen. With pid and
    boot id it names a process for good.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return 0
        except OSError:
            return UNKNOWN
        return UNKNOWN
    return int(stat.rpartition(")")[2].split()[19])
