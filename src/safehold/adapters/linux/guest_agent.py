"""A virtual machine made quiet from the inside, by the QEMU guest agent in it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator

from safehold.adapters.linux.gated import Ended, run_gated
from safehold.model.consistency import Consistency
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.ports.bracket import Begin, Undo

__all__ = ["GuestAgent"]

_PROGRAM = (sys.executable, "-I", "-m", "safehold.watchdog.agent")
_FROZEN_BEFORE = 2
"""See `safehold.watchdog.agent`, the program; it is never imported here."""


class GuestAgent:
    """`guest-agent:SOCKET`: all file systems of the guest whose agent answers on a unix socket. See `ports.bracket.Bracket`.

    A process of its own speaks to the agent and stays connected for the one command only: the watchdog can end it at any moment, and then
    reaches the agent itself.
    """

    expected = 0.5
    promises = reaches = Consistency.FILESYSTEM
    stops: frozenset[str] = frozenset()

    def __init__(self, path: str, seconds: float) -> None:
        """Each command may take `seconds`. UsageError where there is no such socket."""
        self.spec = f"guest-agent:{path}"
        self.path = os.path.abspath(os.path.expanduser(path))
        self._seconds = seconds
        try:
            found = stat.S_ISSOCK(os.stat(self.path).st_mode)
        except OSError:
            found = False
        if not found:
            raise UsageError(
                "there is no such socket",
                on=path,
                remedy="give that of the guest's virtio port org.qemu.guest_agent.0, see docs/consistency.md",
            )

    def prepare(self) -> None:
        """Ask whether the agent is there."""
        ended = self._run("ping", self._seconds, None)
        if ended.code:
            raise self._failed(ended.last_line, "start qemu-guest-agent in the guest")

    def undo(self) -> Undo:
        """See `ports.bracket.Bracket`."""
        return {"kind": "agent", "path": self.path, "seconds": self._seconds}

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        """See `ports.bracket.Bracket`."""
        self._freeze(min(self._seconds, deadline), begin)
        try:
            yield Consistency.FILESYSTEM
        finally:
            if self._thaw() == 0:
                raise self._failed("let its guest go on in between", "start again; nothing was kept")

    def _freeze(self, seconds: float, begin: Begin) -> None:
        try:
            ended = self._run("freeze", seconds, begin)
        except ConsistencyError:
            # It may have been half way.
            self._thaw()
            raise
        if ended.code == _FROZEN_BEFORE:
            # Not ours to end.
            raise self._failed(ended.last_line, "let that end; guest-fsfreeze-thaw ends it by force")
        if ended.code or not int(ended.said):
            self._thaw()
            raise self._failed(
                ended.last_line if ended.code else "froze nothing",
                "see the agent's log, and what is mounted in the guest",
            )

    def _thaw(self) -> int:
        """How many file systems had been frozen."""
        try:
            ended = self._run("thaw", self._seconds, None)
        except ConsistencyError as error:
            raise StillHeldError(error.what, on=error.on, remedy="the watchdog tries again") from error
        if ended.code:
            raise StillHeldError(f"the guest agent {ended.last_line}", on=self.path, remedy="the watchdog tries again")
        return int(ended.said)

    def _run(self, verb: str, seconds: float, begin: Begin | None) -> Ended:
        command = [*_PROGRAM, verb, self.path, str(seconds)]
        try:
            # The program has its own clock; this one is for a program that does not come to look at it.
            return run_gated(command, {}, "/", seconds + 5, begin)
        except TimeoutError as error:
            raise self._failed(str(error), "see whether the guest is running") from error

    def _failed(self, what: str, remedy: str) -> ConsistencyError:
        return ConsistencyError(f"the guest agent {what}", on=self.path, remedy=remedy)
