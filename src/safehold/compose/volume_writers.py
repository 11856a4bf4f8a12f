"""Who can write to live volumes while brackets are held, besides what those hold: file systems, programs, and other clients of the service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from safehold.adapters.linux.holders import device_writers
from safehold.adapters.linux.mounts import Mounted, mounts
from safehold.adapters.linux.namespaces import mounts_elsewhere
from safehold.adapters.linux.openers import command_of
from safehold.adapters.linux.stack import above, roots_seen

__all__ = ["Served", "others"]


@dataclass(frozen=True)
class Served:
    """Volumes as they are served: the devices that those are attached as on this machine that are, by their names; the vaults that their snapshots
    go to; which processes are clients of the service for one, each as often as it is connected, and 0 for each that cannot be seen; their names; and
    the processes that connect the devices.
    """

    devices: Mapping[str, str]
    vaults: Sequence[str]
    clients: Callable[[str], Sequence[int]]
    names: Sequence[str]
    own: Set[int] = field(default_factory=frozenset)


def others(served: Served, volumes: Mapping[str, str], held: Set[str], guests: Set[int]) -> dict[str, str]:
    """One of those, in words, for each volume that has any. `volumes` are names by the numbers of their devices; `held` are file systems and `guests`
    processes of virtual machines that brackets are about.
    """
    found: dict[str, str] = {}
    made = {number: above(number) for number in volumes}
    for where, mounted in _written_to(held):
        bottom = roots_seen(mounted).keys()
        for number, name in volumes.items():
            if made[number] & bottom:
                found[name] = f"what is mounted on {where}"
    for number, name in volumes.items():
        for process in device_writers(made[number]):
            if process not in guests:
                found.setdefault(name, f"the process {_title(process)} that has {served.devices[name]} open")
    for name in served.names:
        for process in served.clients(name):
            if process not in guests and process not in served.own:
                found.setdefault(name, _client(process))
    return found


def _written_to(held: Set[str]) -> Iterator[tuple[str, Mounted]]:
    """File systems that can be written to and are not held, and where one is mounted: once for each."""
    seen = set(held)
    for where, mounted in _everywhere():
        if "ro" not in mounted.super_options and mounted.device not in seen:
            seen.add(mounted.device)
            yield where, mounted


def _everywhere() -> Iterator[tuple[str, Mounted]]:
    for mounted in mounts():
        yield mounted.path, mounted
    for process, there in mounts_elsewhere():
        for mounted in there:
            # By this path it can be looked at from here, too.
            reached = replace(mounted, path=f"/proc/{process}/root{mounted.path}")
            yield f"{mounted.path} in the namespace of process {_title(process)}", reached


def _client(process: int) -> str:
    if not process:
        return "a client that cannot be seen from here"
    if not os.path.exists(f"/proc/{process}"):
        # Its connection is the kernel's by now, as nbd-client leaves it.
        return f"a client that process {process} connected and left to the kernel"
    return f"the client process {_title(process)}"


def _title(process: int) -> str:
    return f"{process} ({command_of(process)})"
