"""What makes live volumes quiet around a seal, and what that vouches for in each of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from safehold.adapters.linux.guest_disks import has_open
from safehold.adapters.linux.mounts import major_minor, mount_of
from safehold.adapters.linux.stack import roots
from safehold.compose.paths import Paths
from safehold.compose.quiet import GRACE, MOMENT, Covering, make_bracket, needed_by_run, watchdog_log
from safehold.compose.volume_writers import Served, others
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.quiet import Quieted
from safehold.ports.bracket import Bracket
from safehold.quiesce.crossing import check_apart
from safehold.quiesce.forbidden import check_allowed
from safehold.quiesce.guard import Terms
from safehold.quiesce.specs import BracketKind, BracketSpec, parse_bracket

__all__ = ["VolumeBrackets", "find_brackets"]


@dataclass(frozen=True)
class VolumeBrackets:
    """Brackets by these terms; `covers` are for each of them the volumes on which nothing else can write while it is held. `loose` says of a volume
    that something else can write to, in words, what that is. `again` takes another look: whoever has come since the first may have written.
    """

    brackets: tuple[Bracket, ...]
    terms: Terms
    covers: tuple[frozenset[str], ...]
    loose: Mapping[str, str]
    again: Callable[[], VolumeBrackets]

    def promised(self, name: str) -> Consistency:
        """What is reached at least in a volume."""
        return max((Consistency.CRASH, *(one.promises for one in self._around(name))))

    def reaches(self, name: str) -> Consistency:
        """What is reached at most in a volume."""
        return max((Consistency.CRASH, *(one.reaches for one in self._around(name))))

    def done(self, name: str, quiet: Sequence[Quieted]) -> tuple[Quieted, ...]:
        """What was done about a volume, of all that was."""
        return tuple(one for one, covered in zip(quiet, self.covers, strict=False) if name in covered)

    def _around(self, name: str) -> Iterator[Bracket]:
        for bracket, covered in zip(self.brackets, self.covers, strict=True):
            if name in covered:
                yield bracket


def find_brackets(texts: Sequence[str], served: Served, paths: Paths, ctx: Context) -> VolumeBrackets:
    """The brackets around the moment in which served volumes are sealed. UsageError where a bracket is about something that lies on none of
    them, or would stop what the snapshot needs.
    """
    volumes = {major_minor(os.stat(device).st_rdev): name for name, device in served.devices.items()}

    covered: set[str] = set()
    """By the bracket that is looked at."""

    def check(spec: BracketSpec, path: str) -> None:
        try:
            lies_on = roots(path)
        except OSError as error:
            raise UsageError(
                f"which devices what is mounted there lies on cannot be told ({error.strerror})",
                on=str(spec),
                remedy="run this as root on the machine that has them, or leave the bracket out",
            ) from error
        if not volumes.keys() & lies_on.keys():
            raise UsageError(
                "what is mounted there lies on none of the volumes",
                on=str(spec),
                remedy=f"that is on {mount_of(path).source}; safehold volume list shows where volumes are attached",
            )
        others = [name for number, name in lies_on.items() if number not in volumes]
        if others:
            raise UsageError(
                f"what is mounted there lies on {', '.join(sorted(others))} too, which this snapshot does not have",
                on=str(spec),
                remedy="take one of all its volumes: --group for each of them",
            )
        covered.update(volumes[number] for number in lies_on)

    guests: set[int] = set()

    def guest(process: int) -> bool:
        covered.update(name for name in served.names if _has(process, name, served))
        if covered:
            guests.add(process)
        return bool(covered)

    specs = [parse_bracket(text) for text in texts]
    made: list[Bracket] = []
    covers: list[frozenset[str]] = []
    held = {mount_of(spec.argument).device for spec in specs if _is_mount(spec) and os.path.exists(spec.argument)}
    for spec in specs:
        covered.clear()
        made.append(make_bracket(spec, Covering(check, guest), ctx))
        covers.append(frozenset(covered))
    brackets, terms = tuple(made), Terms(min(GRACE, MOMENT), MOMENT, watchdog_log(paths))
    check_apart(brackets)
    check_allowed(brackets, list(needed_by_run(paths, served.vaults)))

    def look() -> VolumeBrackets:
        loose = others(served, volumes, held, guests) if specs else {}
        # What a hook makes quiet is for whoever wrote it to know.
        around = tuple(
            frozenset(served.names) if spec.kind is BracketKind.HOOK else covered - loose.keys()
            for spec, covered in zip(specs, covers, strict=True)
        )
        return VolumeBrackets(brackets, terms, around, loose, look)

    return look()


def _is_mount(spec: BracketSpec) -> bool:
    return spec.kind in (BracketKind.FSFREEZE, BracketKind.READONLY, BracketKind.UNMOUNT)


def _has(process: int, name: str, served: Served) -> bool:
    if process in served.clients(name):
        return True
    if name not in served.devices:
        return False
    device = os.stat(served.devices[name]).st_rdev
    return has_open(process, lambda info: stat.S_ISBLK(info.st_mode) and info.st_rdev == device)
