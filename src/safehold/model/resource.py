"""What is protected."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ResourceRef", "can_be_chosen"]


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
