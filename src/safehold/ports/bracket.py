"""The seam to what makes a resource quiet while a capture of it is created."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from safehold.model.consistency import Consistency

__all__ = ["Begin", "Bracket", "Undo"]

Undo = Mapping[str, Any]
"""What lets go, as plain data: `kind` (thaw, agent, mount, remount or run) and what that kind needs; `safehold.watchdog.undo` says what."""


class Begin(Protocol):
    """Asks whether a step may be taken."""

    def __call__(self, process: int = 0) -> None:
        """Called right before what cannot be taken back. `process` is one that will do it and waits to be told to, the first of a process group of
        its own. ConsistencyError where the time is over: nothing may be held any more then.
        """
        ...


class Bracket(Protocol):
    """One thing that can be made quiet, and let go again."""

    @property
    def spec(self) -> str:
        """As a user writes it: `fsfreeze:/srv/data`."""
        ...

    @property
    def expected(self) -> float:
        """Seconds of pause that are expected of making quiet and letting go."""
        ...

    @property
    def promises(self) -> Consistency:
        """What is reached at least once it is held."""
        ...

    @property
    def reaches(self) -> Consistency:
        """What can be reached at most."""
        ...

    @property
    def stops(self) -> frozenset[str]:
        """Device numbers (`major:minor`) of file systems to which nobody can write meanwhile."""
        ...

    def prepare(self) -> None:
        """Do what can be done while nobody has to wait yet. ConsistencyError where it is plain that holding will not work."""
        ...

    def undo(self) -> Undo:
        """What lets go of it; handed to the watchdog before anything is held."""
        ...

    def hold(self, deadline: float, begin: Begin) -> AbstractContextManager[Consistency]:
        """Quiet inside the with-block; gives what that vouches for. `deadline` are the seconds until the watchdog lets go.

        ConsistencyError where it cannot be made quiet, or at the end, where it was not quiet all the time or cannot be let go of.
        """
        ...
