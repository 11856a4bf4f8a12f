"""What is protected."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

__all__ = ["ResourceRef", "can_be_chosen", "what_there_is"]

_NAMED = 3
"""So many resources are named to somebody who asked for one that is not there."""


@dataclass(frozen=True, slots=True)
class ResourceRef:
    """A resource: its `kind` (volume, tree, …), its `name` (the identity its history hangs on), and where it is now.

    `location` is for the source that resolved it (a path, a URL); it may change from one backup to the next. `more` are
    further locations of a resource that lies in several places. `chosen` says that the name is somebody's word; else it is made of the location.
    """

    kind: str
    name: str
    location: str
    more: tuple[str, ...] = ()
    chosen: bool = False


def can_be_chosen(name: str) -> bool:
    """Whether somebody may give a resource this name: what a terminal would obey, and what ends a name in `RESOURCE@WHEN`, are not in it."""
    return name != "" and name.isprintable() and "@" not in name


def what_there_is(asked: str, names: Iterable[str], command: str) -> str:
    """What to do about a name that none of the resources has: which may be meant, and the command that shows them all.

    Directories go by their whole path, images by their name without its ending, and either may have been asked for by what the user calls it.
    """
    among = sorted(set(names))
    path = os.path.normpath(asked).strip("./").replace("/", "-")
    stem = os.path.splitext(os.path.basename(asked))[0]
    near = [name for name in among if name in (path, stem) or name.endswith(f"-{path}")]
    near = near or get_close_matches(asked, among, _NAMED)
    all_of_them = f"see what there is: {command}"
    return f"did you mean {' or '.join(near[:_NAMED])}? Else {all_of_them}" if near else all_of_them
