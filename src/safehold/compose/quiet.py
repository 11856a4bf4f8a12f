"""Picks what makes a resource quiet, and refuses what would stop the backup itself."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safehold.adapters.linux.downtime import ReadOnly, Unmount
from safehold.adapters.linux.hook import Hook
from safehold.adapters.linux.mounts import mount_of
from safehold.adapters.linux.stack import below, disks, swap_places
from safehold.app.downtime import Downtime
from safehold.compose.paths import Paths
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.objects.location import local_place
from safehold.ports.bracket import Bracket
from safehold.quiesce.forbidden import Needed, check_allowed
from safehold.quiesce.guard import Terms
from safehold.quiesce.specs import BracketKind, BracketSpec, parse_bracket

__all__ = ["find_downtime"]

_GRACE = 15.0
"""Seconds without a word after which the watchdog lets go of a copy's brackets: longer than a busy machine keeps a thread waiting."""

_HOOK = 60.0
"""Seconds for each half of a hook."""


def find_downtime(
    texts: Sequence[str], limit: float, ref: ResourceRef, paths: Paths, vault: str, ctx: Context
) -> Downtime:
    """The brackets that a user asked for, to be held for `limit` seconds at most while `ref` is read.

    UsageError where they cannot hold that resource, or would stop what the backup needs; nothing is held yet.
    """
    specs = [parse_bracket(text) for text in texts]
    brackets = tuple(_make(spec, ref, ctx) for spec in specs)
    check_allowed(brackets, list(_needed(paths, vault)))
    return Downtime(brackets, Terms(min(_GRACE, limit), limit, _log(paths)), _size(ref))


def _log(paths: Paths) -> Path:
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return paths.state / "watchdog.log"


def _make(spec: BracketSpec, ref: ResourceRef, ctx: Context) -> Bracket:
    match spec.kind:
        case BracketKind.FSFREEZE:
            raise UsageError(
                f"a freeze is for the moment in which a capture is made, and nothing can hold one of {ref.name}",
                on=str(spec),
                remedy="use unmount: or readonly:, back up a snapshot of it, or accept what comes with --require none",
            )
        case BracketKind.HOOK:
            return Hook(spec.argument, os.environ, ctx.run_id, _HOOK)
        case BracketKind.READONLY:
            read_only = ReadOnly(spec.argument)
            _check_covers(spec, read_only.path, ref)
            return read_only
        case BracketKind.UNMOUNT:
            unmount = Unmount(spec.argument)
            if ref.kind != "volume":
                raise UsageError("there is nothing to read in what is unmounted", on=str(spec), remedy="use readonly:")
            _check_covers(spec, unmount.path, ref)
            return unmount


def _check_covers(spec: BracketSpec, path: str, ref: ResourceRef) -> None:
    """UsageError where the bracket is about something else: what it reached would be said of the wrong disk."""
    if ref.kind == "volume":
        info = os.stat(ref.location)
        covered = stat.S_ISBLK(info.st_mode) and f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}" in disks(path)
    else:
        there = mount_of(path).device
        covered = all(mount_of(place).device == there for place in (ref.location, *ref.more) if os.path.exists(place))
    if not covered:
        raise UsageError(
            f"what is mounted there is not what is backed up ({ref.location})",
            on=str(spec),
            remedy=f"back up the device itself: {mount_of(path).source}",
        )


def _size(ref: ResourceRef) -> int | None:
    if ref.kind != "volume":
        return None
    with open(ref.location, "rb") as disk:
        return disk.seek(0, os.SEEK_END)


def _needed(paths: Paths, vault: str) -> Iterator[Needed]:
    own = [
        ("the state directory", paths.state),
        ("the cache", paths.cache),
        ("the configuration", paths.config),
        ("the directory for temporary files", Path(tempfile.gettempdir())),
        *(("the vault", place) for place in local_place(vault)),
    ]
    for what, path in own:
        yield Needed(what, str(path), below(str(path)))
    for swap in swap_places():
        yield Needed("swap", swap, below(swap))
    for number in (1, 2):
        # A log that the output goes to: a line that has to wait would keep the backup waiting.
        place = Path(f"/proc/self/fd/{number}").resolve()
        if place.is_file():
            yield Needed("the output of this command", str(place), below(str(place)))
