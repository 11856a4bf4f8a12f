"""What a restore of files fell short of, told in a few lines however many files it is of."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from safehold.model.errors import PartialError
from safehold.model.units import format_count
from safehold.ports.tree import Problem

__all__ = ["shortfall", "shortfall_lines"]

_NAMED = 3
"""So many files of a kind are named: enough to see which ones it is about."""

_FORBIDDEN = {os.strerror(errno.EPERM), os.strerror(errno.EACCES)}


def shortfall_lines(problems: Sequence[Problem]) -> Iterator[str]:
    """One line for each kind of thing that failed for one reason, with the first files it is of."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.what, problem.reason), []).append(problem)
    for (what, reason), same in kinds.items():
        if len(same) == 1:
            yield str(same[0])
            continue
        named = ", ".join(problem.path for problem in same[:_NAMED])
        if len(same) > _NAMED:
            named += f" and {len(same) - _NAMED:,} more (--json names all)"
        yield f"{format_count(len(same), 'file')}: {what} ({reason}): {named}"


def shortfall(problems: Sequence[Problem], target: str) -> PartialError:
    """What they come to, and what to do about it."""
    absent = {problem.path for problem in problems if problem.absent}
    if absent:
        return PartialError(
            f"{format_count(len(absent), 'file')} not restored",
            on=target,
            remedy="put right what is named above, then restore again with --delta",
        )
    count = format_count(len({problem.path for problem in problems}), "file")
    if os.geteuid() and any(problem.reason in _FORBIDDEN for problem in problems):
        return PartialError(
            f"{count} restored with their content, but not with every owner or attribute",
            on=target,
            remedy="only root can set those: where they matter, restore again as root with --delta",
        )
    return PartialError(
        f"{count} restored with their content, but not with every attribute",
        on=target,
        remedy="see above which; restore onto a file system that has them where they matter",
    )
