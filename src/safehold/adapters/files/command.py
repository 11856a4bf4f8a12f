"""What a program writes as a source of backups. Unlike standard input it cannot end early unseen: its exit code is looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator

from safehold.adapters.files.stream import KIND, StreamCapture, demand_nothing
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import SourceError, UsageError
from safehold.model.resource import ResourceRef

__all__ = ["CommandSource"]

_PREFIX = "command:"
_PIPE = 1024 * 1024
_PATIENCE = 10.0
"""Seconds that a program is given to end once nobody reads it any more."""


class CommandSource:
    """Starts a program when it is captured, and reads its standard output to the end."""

    def resolve(self, spec: str) -> ResourceRef | None:
        """`command:PROGRAM ARGUMENTS`, in the shell's quoting but without a shell. See `ports.source.Source`."""
        if not spec.startswith(_PREFIX):
            return None
        command = spec.removeprefix(_PREFIX)
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"is no command ({error})", on=command, remedy="quote it as for a shell") from None
        if not words:
            raise UsageError("names no command", on=spec, remedy="command:pg_dump orders")
        return ResourceRef(KIND, "-", command)

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[StreamCapture]:
        """See `ports.source.Source`. How still the program held what it writes cannot be known."""
        demand_nothing(ref, require)
        try:
            # A session of its own: what is typed at the terminal ends it by way of us, so that its end is not taken for its success.
            program = subprocess.Popen(
                shlex.split(ref.location), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise SourceError(
                f"the command cannot be started ({error.strerror})", on=ref.location, remedy="run it by hand"
            ) from error
        assert program.stdout is not None
        with program.stdout:
            with contextlib.suppress(OSError):
                # No more than a hint: an ordinary user may have used up what all of a user's pipes may hold.
                fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
            try:
                yield StreamCapture(ref, _Output(program, ref.location), ctx.clock)
            finally:
                _end(program)


class _Output:
    def __init__(self, program: subprocess.Popen[bytes], command: str) -> None:
        self._program, self._command = program, command
        self._any = False

    def read_some(self, buf: memoryview) -> int:
        assert self._program.stdout is not None
        got = os.readv(self._program.stdout.fileno(), [buf])
        if got:
            self._any = True
            return got
        code = self._program.wait()
        if code:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
            raise SourceError(
                f"the command {how}: nothing that it wrote is kept", on=self._command, remedy="run it by hand"
            )
        if not self._any:
            raise SourceError("the command wrote nothing", on=self._command, remedy="run it by hand")
        return 0


def _end(program: subprocess.Popen[bytes]) -> None:
    """Leave nothing running, whoever it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if program.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(_PATIENCE)
