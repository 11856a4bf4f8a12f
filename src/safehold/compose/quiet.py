"""Picks what makes a resource quiet, and refuses what would stop the backup itself."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safehold.adapters.image.clone import CloneSource, can_clone
from safehold.adapters.image.lvm import LvmSource, can_snapshot
from safehold.adapters.linux.downtime import ReadOnly, Unmount
from safehold.adapters.linux.freeze import Freeze
from safehold.adapters.linux.guest_agent import GuestAgent
from safehold.adapters.linux.guest_disks import guest_processes, has_open
from safehold.adapters.linux.hook import Hook
from safehold.adapters.linux.mounts import major_minor, mount_of, mounts
from safehold.adapters.linux.stack import backing_file, below, disks, swap_places
from safehold.app.downtime import Downtime
from safehold.compose.paths import Paths
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.objects.location import local_place
from safehold.ports.bracket import Bracket
from safehold.ports.source import Source
from safehold.quiesce.forbidden import Needed, check_allowed
from safehold.quiesce.guard import Terms
from safehold.quiesce.orphans import may_be_held
from safehold.quiesce.specs import BracketKind, BracketSpec, parse_bracket

__all__ = [
    "GRACE",
    "MOMENT",
    "Covering",
    "find_downtime",
    "frozen_problems",
    "make_bracket",
    "needed_by_run",
    "watchdog_log",
]

GRACE = 15.0
"""Seconds without a word after which the watchdog lets go of a copy's brackets: longer than a busy machine keeps a thread waiting."""

_HOOK = 60.0
"""Seconds for each half of a hook."""

_AGENT = 20.0
"""Seconds for each command to a guest's agent: a guest under load writes out what it has first."""

MOMENT = 30.0
"""Seconds for making a clone, with the brackets around it, unless the user says otherwise: databases bear such a pause."""


@dataclass(frozen=True)
class Covering:
    """What a bracket has to be about: checks of what is mounted somewhere, and of what the process of a guest has."""

    mount: Callable[[BracketSpec, str], None]
    guest: Callable[[int], bool]


def find_downtime(
    texts: Sequence[str], limit: float | None, source: Source, ref: ResourceRef, paths: Paths, vault: str, ctx: Context
) -> tuple[Downtime, Source]:
    """The brackets that a user asked for, and the source to use inside: one that clones or snapshots where that can be, else `source`.

    `limit` are the seconds for which they may be held. UsageError where they cannot hold that resource, would stop what the backup
    needs, or would be held for a whole copy without a limit; nothing is held yet.
    """
    specs = [parse_bracket(text) for text in texts]
    clones = ref.kind == "volume" and os.path.isfile(ref.location) and can_clone(ref.location)
    snapshots = ref.kind == "volume" and can_snapshot(ref.location)
    moment = clones or snapshots
    for spec in specs:
        if spec.kind is BracketKind.FSFREEZE and snapshots:
            raise UsageError(
                "making an LVM snapshot freezes the file system by itself, and cannot where it is frozen already",
                on=str(spec),
                remedy="leave it out; hook:, unmount: and readonly: go with a snapshot",
            )
        if spec.kind in (BracketKind.FSFREEZE, BracketKind.GUEST_AGENT) and not moment:
            raise UsageError(
                f"a freeze is for the moment in which a capture is made, and nothing can hold one of {ref.name}",
                on=str(spec),
                remedy="use unmount: or readonly:, back up a snapshot of it, or accept what comes with --require none",
            )
    if limit is None and not moment:
        raise UsageError(
            f"nothing else holds a capture of {ref.name}, so brackets are held while all of it is read",
            on=", ".join(texts),
            remedy="say how long that may take with --downtime 30m; --dry-run with it estimates how long it will",
        )
    covering = Covering(lambda spec, path: _check_covers(spec, path, ref), lambda process: _has_disk(process, ref))
    brackets = tuple(make_bracket(spec, covering, ctx) for spec in specs)
    for spec in specs:
        if spec.kind is BracketKind.UNMOUNT and ref.kind != "volume":
            raise UsageError("there is nothing to read in what is unmounted", on=str(spec), remedy="use readonly:")
    check_allowed(brackets, list(needed_by_run(paths, [vault])))
    longest = limit if limit is not None else MOMENT
    downtime = Downtime(brackets, Terms(min(GRACE, longest), longest, watchdog_log(paths)), _size(ref), moment)
    if snapshots:
        return downtime, LvmSource()
    return downtime, CloneSource() if clones else source


def frozen_problems(paths: Paths) -> list[str]:
    """What an operator should know of things that may be held, with nobody left who would let go of them."""
    held = may_be_held(watchdog_log(paths))
    there = mounts() if held else []
    # Whether a file system is frozen the kernel does not tell.
    done = {f"mount {one.source} on {one.path}" for one in there}
    done |= {f"make {one.path} writable" for one in there if "ro" not in one.super_options}
    return [
        f"a capture and its watchdog were killed or gave up, so this may still have to be done: {what}"
        for what in held
        if what not in done
    ]


def watchdog_log(paths: Paths) -> Path:
    """Where the watchdog writes what it did."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return paths.state / "watchdog.log"


def make_bracket(spec: BracketSpec, covering: Covering, ctx: Context) -> Bracket:
    """What a user asked for, not held yet. UsageError where it cannot be, or is about something else."""
    match spec.kind:
        case BracketKind.FSFREEZE:
            frozen = Freeze(spec.argument)
            covering.mount(spec, spec.argument)
            return frozen
        case BracketKind.GUEST_AGENT:
            agent = GuestAgent(spec.argument, _AGENT)
            _check_guest(spec, agent.path, covering.guest)
            return agent
        case BracketKind.HOOK:
            return Hook(spec.argument, os.environ, ctx.run_id, _HOOK)
        case BracketKind.READONLY:
            read_only = ReadOnly(spec.argument)
            covering.mount(spec, read_only.path)
            return read_only
        case BracketKind.UNMOUNT:
            unmount = Unmount(spec.argument)
            covering.mount(spec, unmount.path)
            return unmount


def _check_guest(spec: BracketSpec, path: str, has_disk: Callable[[int], bool]) -> None:
    """UsageError unless the guest whose agent that is has the disk: another guest's would be frozen, and this one's called quiet."""
    unseen = True
    for process in guest_processes(path):
        try:
            if has_disk(process):
                return
            unseen = False
        except PermissionError:
            continue
    if unseen:
        raise UsageError(
            "which disks that guest has cannot be seen from here",
            on=str(spec),
            remedy="run this as root, or as the user that runs the guest, on the machine that it runs on; or use a hook",
        )
    raise UsageError(
        "that guest does not have the disk", on=str(spec), remedy="give the socket of the guest that it is a disk of"
    )


def _has_disk(process: int, ref: ResourceRef) -> bool:
    disk = os.stat(ref.location)
    if stat.S_ISBLK(disk.st_mode):
        return has_open(process, lambda info: stat.S_ISBLK(info.st_mode) and info.st_rdev == disk.st_rdev)
    return has_open(process, lambda info: (info.st_dev, info.st_ino) == (disk.st_dev, disk.st_ino))


def _check_covers(spec: BracketSpec, path: str, ref: ResourceRef) -> None:
    """UsageError where the bracket is about something else: what it reached would be said of the wrong disk."""
    if ref.kind == "volume":
        info = os.stat(ref.location)
        image = backing_file(path)
        if stat.S_ISBLK(info.st_mode):
            # All of it: an image of one device of several is whole only by chance.
            covered = disks(path) == {major_minor(info.st_rdev)}
        else:
            covered = image is not None and os.path.exists(image) and os.path.samefile(image, ref.location)
    else:
        there = mount_of(path).device
        covered = all(mount_of(place).device == there for place in (ref.location, *ref.more) if os.path.exists(place))
    if not covered:
        raise UsageError(
            f"what is mounted there is not what is backed up ({ref.location})",
            on=str(spec),
            remedy=f"that is on {mount_of(path).source}",
        )


def _size(ref: ResourceRef) -> int | None:
    if ref.kind != "volume":
        return None
    with open(ref.location, "rb") as disk:
        return disk.seek(0, os.SEEK_END)


def needed_by_run(paths: Paths, vaults: Iterable[str]) -> Iterator[Needed]:
    """What must go on to be written to while brackets are held."""
    own = [
        ("the state directory", paths.state),
        ("the cache", paths.cache),
        ("the configuration", paths.config),
        ("the directory for temporary files", Path(tempfile.gettempdir())),
        *(("the vault", place) for vault in vaults for place in local_place(vault)),
    ]
    for what, path in own:
        yield Needed(what, str(path), below(str(path)))
    for swap in swap_places():
        yield Needed("swap", swap, below(swap))
    for number in (1, 2):
        # A log that the output goes to: a line that has to wait would keep the backup waiting.
        # By way of the kernel's link: the user need not be let into the directory that it lies in.
        output = f"/proc/self/fd/{number}"
        if os.path.isfile(output):
            yield Needed("the output of this command", os.readlink(output), below(output))
