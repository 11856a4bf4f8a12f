"""The seam to an object store: six verbs, and what each must guarantee."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Capabilities", "Stamp", "Store"]


def _endless() -> float:
    return float("inf")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """How a store is best used; `parallel` is how many requests are worth keeping under way at once, and `room` tells how many bytes backups may
    still put there (below zero: they have used some of what is kept for giving space back).

    Whether it keeps its promises is for nobody to claim: `objects.check` tries it.
    """

    parallel: int
    room: Callable[[], float] = _endless


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a store knows of one object: `size` in bytes, `version` (opaque; empty where there is none) and `time`.

    `time` is seconds since 1970 by the store's own clock, which clients cannot set.
    """

    name: str
    size: int
    version: str
    time: float


class Store(Protocol):
    """Named immutable byte strings under one location.

    Names are relative, `/`-separated, of `[a-z0-9._-]` segments that do not start with a dot. No
    directory's name may be the beginning of a sibling's followed by `-` or `.`: servers sort such names differently. All methods may be
    called from several threads at once. Failures are the StoreError family of `safehold.model.errors` and nothing
    else: StoreUnavailable where retrying may help, ObjectNotFound, ObjectExists, StorePermission, StoreFull,
    ShortRead.
    """

    @property
    def url(self) -> str:
        """The location, as a user would type it; carries no credentials."""
        ...

    @property
    def caps(self) -> Capabilities:
        """How the store is best used."""
        ...

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """Store the concatenation of `parts`; durable and visible to everyone when it returns, all or nothing if it
        fails.

        With `create_only`, an object already there under `name` stays as it is and ObjectExists is raised.
        """
        ...

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """Fill all of `buf` from byte `offset`; ShortRead where the object ends before that."""
        ...

    def get(self, name: str) -> bytes:
        """The whole object."""
        ...

    def head(self, name: str) -> Stamp:
        """Size, version and store time without the bytes; ObjectNotFound where there is none."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """Objects whose names start with `prefix` (a plain string prefix) and sort after `after`, in ascending byte
        order of name.

        Objects being written are never listed. An unknown prefix lists nothing.
        """
        ...

    def delete(self, name: str, version: str | None = None) -> None:
        """Remove the object (that version of it); removing what is not there succeeds."""
        ...
