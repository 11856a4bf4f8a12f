"""Where this process stands: out of reach of what ends its owner."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safehold.watchdog.kernel import join_mounts, lock_memory

__all__ = ["Place", "detach", "share_mounts", "take_place"]

_KILLING = ("", "name=systemd")
"""Control group hierarchies by which a service manager ends a service: version 2, and the manager's own of version 1."""


@dataclass(frozen=True)
class Place:
    """What was reached: `locked` in memory, `spared` when memory runs out, `apart` from the owner's control group."""

    locked: bool
    spared: bool
    apart: bool


def detach() -> None:
    """Become a child of the system in a session of its own: what goes along the tree of processes or a terminal does not come here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")


def share_mounts(owner: int) -> None:
    """See the same mounts as the owner, which a unit of its own may not. OSError."""
    theirs = os.open(f"/proc/{owner}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(theirs).st_ino != os.stat("/proc/self/ns/mnt").st_ino:
            join_mounts(theirs)
    finally:
        os.close(theirs)


def take_place(owner: int) -> Place:
    """Leave the control groups, then lock the memory: what is used up to then is the old group's."""
    apart = _leave_groups(owner)
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000")
        spared = True
    except OSError:
        spared = False
    try:
        lock_memory()
        locked = True
    except OSError:
        locked = False
    return Place(locked, spared, apart)


def _groups(process: int | str) -> dict[str, str]:
    """The process's place in every hierarchy; the key of version 2 is empty."""
    lines = (line.split(":", 2) for line in Path(f"/proc/{process}/cgroup").read_text().splitlines())
    return {controllers: path for _, controllers, path in lines}


def _hierarchies() -> dict[str, Path]:
    """Where every hierarchy is mounted."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found[""] = Path(before.split()[4])
        elif kind == "cgroup":
            known = options.split(",")
            names = [word for word in known if word.startswith("name=")]
            place = Path(before.split()[4])
            for controllers in _groups("self"):
                if controllers and (controllers in names or set(controllers.split(",")) <= set(known)):
                    found[controllers] = place
    return found


def _leave_groups(owner: int) -> bool:
    """Move to the top of every hierarchy where that is allowed; true where no kill of the owner's group comes here."""
    theirs, tops = _groups(owner), _hierarchies()
    for controllers, top in tops.items():
        if theirs.get(controllers) == _groups("self").get(controllers) != "/":
            try:
                (top / "cgroup.procs").write_text(str(os.getpid()))
            except OSError:
                continue
    mine = _groups("self")
    return all(
        _apart(mine[controllers], theirs.get(controllers, ""))
        or _cannot_be_killed(controllers, mine[controllers], tops.get(controllers))
        for controllers in mine
        if controllers in _KILLING
    )


def _apart(mine: str, theirs: str) -> bool:
    return mine != theirs and not mine.startswith(theirs.rstrip("/") + "/")


def _cannot_be_killed(controllers: str, mine: str, top: Path | None) -> bool:
    """True at the top of a whole hierarchy. The top that a container sees is none: there it has the file by which a group is killed. Version
    1 has no such file; where it is not mounted, a manager here does not use it.
    """
    if top is None:
        return bool(controllers)
    return mine == "/" and not (top / "cgroup.kill").exists()
