"""Who keeps a file system from being unmounted: what is mounted over or in it, and who has files of it open (proc_pid_fd(5), proc_pid_maps(5)).

The file system itself is asked nothing, as it may hang: the kernel's tables tell it by the number of the mount and by the paths that they show.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.linux.holders import Held, held_by
from safehold.adapters.linux.mounts import Mounted, mounts
from safehold.adapters.linux.namespaces import namespace_of
from safehold.adapters.linux.openers import command_of, processes
from safehold.adapters.linux.stack import loops_on

__all__ = ["busy", "demand_topmost", "mount_users"]


def demand_topmost(mounted: Mounted) -> None:
    """Held where something else is mounted over it: umount(8), which goes by the path, would take that away."""
    for other in mounts():
        if other.parent == mounted.number and other.path == mounted.path:
            raise Held(
                f"{other.source} ({other.type}) is mounted over {mounted.source} on {mounted.path}",
                on=mounted.source,
                remedy="nothing was changed; detach or unmount that first",
            )


def busy(mounted: Mounted) -> Held | None:
    """What to tell where it cannot be unmounted; None where nobody who uses it can be seen."""
    users = mount_users(mounted)
    if not users:
        return None
    return held_by(users, "file system", mounted.path)


def mount_users(mounted: Mounted) -> list[str]:
    """Everybody who can be seen, in words."""
    found = [f"{other.source} is mounted in it on {other.path}" for other in mounts() if other.parent == mounted.number]
    found += [f"/dev/{block.name} lies on a file in it" for block in loops_on(lambda name: _lies_in(name, mounted))]
    space = namespace_of(os.getpid())
    for process in processes():
        with contextlib.suppress(OSError):
            # The same path is another mount in another namespace, and does not keep this one.
            if namespace_of(process) == space:
                use = next(_uses(process, mounted), None)
                if use:
                    found.append(f"process {process} ({command_of(process)}) {use}")
    return found


def _uses(process: int, mounted: Mounted) -> Iterator[str]:
    place = Path(f"/proc/{process}")
    for fd in _names(place / "fd"):
        with contextlib.suppress(OSError):
            if f"\nmnt_id:\t{mounted.number}\n" in (place / "fdinfo" / fd).read_text():
                yield f"has {os.readlink(place / 'fd' / fd)} open"
    for link, what in (("cwd", "works in"), ("root", "has as its root"), ("exe", "runs")):
        with contextlib.suppress(OSError):
            path = os.readlink(place / link)
            if _lies_in(path, mounted):
                yield f"{what} {path}"
    with contextlib.suppress(OSError):
        for line in (place / "maps").read_text(errors="surrogateescape").splitlines():
            mapped = line.split(maxsplit=5)[5:]
            if mapped and _lies_in(mapped[0], mounted):
                yield f"has {mapped[0]} in its memory"


def _names(place: Path) -> list[str]:
    try:
        return os.listdir(place)
    except OSError:
        return []


def _lies_in(path: str, mounted: Mounted) -> bool:
    return path == mounted.path or path.startswith(mounted.path.rstrip("/") + "/")
