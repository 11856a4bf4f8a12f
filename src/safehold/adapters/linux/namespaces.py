"""What is mounted in other mount namespaces (mount_namespaces(7)), as those of containers and of many services, as far as that can be seen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from safehold.adapters.linux.mounts import Mounted, mounts
from safehold.adapters.linux.openers import processes

__all__ = ["mounts_elsewhere", "namespace_of"]


def namespace_of(process: int) -> int:
    """The number of a process's mount namespace. OSError where it may not be looked into, or has ended."""
    return os.stat(f"/proc/{process}/ns/mnt").st_ino


def mounts_elsewhere() -> Iterator[tuple[int, list[Mounted]]]:
    """A process of each namespace but this one, and what is mounted there; paths are as that process sees them. Those of processes that may not be
    looked into are left out.
    """
    seen = {namespace_of(os.getpid())}
    for process in processes():
        with contextlib.suppress(OSError):
            space = namespace_of(process)
            if space not in seen:
                found = mounts(process)
                seen.add(space)
                yield process, found
