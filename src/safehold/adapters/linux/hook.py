"""A command of the user's that makes an application quiet."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping

from safehold.adapters.linux.gated import run_gated
from safehold.model.consistency import Consistency
from safehold.model.environment import plain_environment
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.ports.bracket import Begin, Undo

__all__ = ["Hook"]

_SAID = re.compile(rb"^consistency=(\w+)\s*$", re.MULTILINE)


class Hook:
    """`hook:COMMAND`, run as `COMMAND freeze` and `COMMAND thaw`. See `ports.bracket.Bracket`.

    It vouches for what it prints in a line `consistency=application` (or filesystem, or crash), and without one for nothing.
    """

    expected = 1.0
    promises = Consistency.NONE
    reaches = Consistency.APPLICATION
    stops: frozenset[str] = frozenset()

    def __init__(self, command: str, environment: Mapping[str, str], run_id: str, seconds: float) -> None:
        """Each half may take `seconds`. UsageError where there is no such program."""
        self.spec = f"hook:{command}"
        self._command = os.path.abspath(os.path.expanduser(command))
        self._seconds = seconds
        self._environment = plain_environment(environment) | {"SAFEHOLD_RUN": run_id}
        if not os.path.isfile(self._command) or not os.access(self._command, os.X_OK):
            raise UsageError("there is no such program", on=command, remedy="give the path of an executable file")

    def prepare(self) -> None:
        """Nothing can be done before."""

    def undo(self) -> Undo:
        """See `ports.bracket.Bracket`."""
        return {
            "kind": "run",
            "argv": [self._command, "thaw"],
            "environment": self._environment,
            "directory": os.path.dirname(self._command),
            "seconds": self._seconds,
        }

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        """See `ports.bracket.Bracket`."""
        seconds = min(self._seconds, deadline)
        try:
            said = self._run("freeze", seconds, begin)
        except ConsistencyError:
            # It may have been half way: letting go is for it to make harmless.
            self._thaw()
            raise
        try:
            yield self._level(said)
        finally:
            self._thaw()

    def _thaw(self) -> None:
        try:
            self._run("thaw", self._seconds, None)
        except ConsistencyError as error:
            raise StillHeldError(error.what, on=error.on, remedy="the watchdog runs it again") from error

    def _level(self, said: bytes) -> Consistency:
        words = _SAID.findall(said)
        if not words:
            return Consistency.NONE
        try:
            return Consistency.parse(words[-1].decode())
        except ValueError as error:
            raise self._failed(f"said consistency={words[-1].decode()}", str(error)) from error

    def _run(self, half: str, seconds: float, begin: Begin | None) -> bytes:
        """The output of one half."""
        try:
            ended = run_gated([self._command, half], self._environment, os.path.dirname(self._command), seconds, begin)
        except TimeoutError as error:
            raise self._failed(
                f"did not finish {half} within {seconds:g} s", "give it more time, or look at what it waits for"
            ) from error
        if ended.code:
            said = f": {ended.last_line}" if ended.last_line else ""
            raise self._failed(f"{half} ended with code {ended.code}{said}", f"run it by hand: {self._command} {half}")
        return ended.said

    def _failed(self, what: str, remedy: str) -> ConsistencyError:
        return ConsistencyError(f"the hook {what}", on=self._command, remedy=remedy)
