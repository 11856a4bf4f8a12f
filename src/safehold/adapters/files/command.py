"""What a program writes as a source of backups. Unlike standard input it cannot end early unseen: its exit code is looked at."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import IO

from safehold.adapters.files.stream import KIND, StreamCapture, demand_nothing
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import SourceError, UsageError
from safehold.model.resource import ResourceRef
from safehold.model.shown import printable

__all__ = ["CommandSource"]

_PREFIX = "command:"
_PIPE = 1024 * 1024
_TICK = 0.5
_TAIL = 4096
"""Bytes of a program's standard error that are remembered."""
_LINE = 300
"""Characters of its last line that a message repeats."""
_STANDARD_ERROR = 2
_PATIENCE = 10.0
"""Seconds that a program is given to end once nobody reads it any more."""


class CommandSource:
    """Starts a program when it is first read, and reads its standard output to the end."""

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
        """See `ports.source.Source`. The program is started when it is first read. How still it held what it writes cannot be known."""
        demand_nothing(ref, require)
        output = _Output(shlex.split(ref.location), ctx)
        try:
            yield StreamCapture(ref, output, ctx.clock)
        finally:
            output.close()


class _LastWords:
    """Passes on what a program writes to its standard error, and remembers the end of it: that is mostly why it failed."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._end = b""
        self._thread = threading.Thread(target=self._pass_on, name="last words", daemon=True)
        self._thread.start()

    def _pass_on(self) -> None:
        with self._pipe, contextlib.suppress(OSError):
            while data := os.read(self._pipe.fileno(), _TAIL):
                self._end = (self._end + data)[-_TAIL:]
                # Nobody may listen; the program is not to notice.
                with contextlib.suppress(OSError):
                    _write_all(_STANDARD_ERROR, data)

    def told(self) -> str:
        """The last line, as the end of a sentence; nothing where there is none. For when the program has ended."""
        # What it has started may go on holding its standard error open.
        self._thread.join(_TICK)
        lines = [line.strip() for line in self._end.decode(errors="backslashreplace").splitlines() if line.strip()]
        return f"; it said: {printable(lines[-1][-_LINE:])}" if lines else ""


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class _Output:
    """What a program writes. Errors name the program, and what it said last, alone: its arguments may hold what is nobody's business."""

    def __init__(self, words: list[str], ctx: Context) -> None:
        self._words, self._ctx = words, ctx
        self._program: subprocess.Popen[bytes] | None = None
        self._last: _LastWords | None = None
        self._any = self._well = False

    def read_some(self, buf: memoryview) -> int:
        """See `ports.tree.ByteStream`."""
        self._program = self._program or self._started()
        assert self._program.stdout is not None
        pipe = self._program.stdout.fileno()
        # A program may be silent for long: a read that waits for it could not be cancelled.
        while not select.select([pipe], [], [], _TICK)[0]:
            self._ctx.cancel.check()
        got = os.readv(pipe, [buf])
        if got:
            self._any = True
            return got
        while (ended := _ended(self._program)) is None:
            self._ctx.cancel.check()
            time.sleep(_TICK / 10)
        if ended:
            raise SourceError(
                f"the command {ended}: nothing that it wrote is kept{self._said()}",
                on=self._words[0],
                remedy="run it by hand",
            )
        if not self._any:
            raise SourceError(f"the command wrote nothing{self._said()}", on=self._words[0], remedy="run it by hand")
        self._well = True
        return 0

    def _said(self) -> str:
        return self._last.told() if self._last else ""

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SAFEHOLD_")}
        try:
            # A session of its own: what is typed at the terminal ends it by way of us, so that its end is not taken for its success.
            program = subprocess.Popen(
                self._words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(
                f"the command cannot be started ({reason})", on=self._words[0], remedy="run it by hand"
            ) from error
        assert program.stdout is not None
        assert program.stderr is not None
        self._last = _LastWords(program.stderr)
        with contextlib.suppress(OSError):
            # No more than a hint: an ordinary user may have used up what all of a user's pipes may hold.
            fcntl.fcntl(program.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
        return program

    def close(self) -> None:
        """Unless it ended well, leave nothing running of what it has started, as far as that stayed in its process group."""
        program = self._program
        if program is None:
            return
        assert program.stdout is not None
        program.stdout.close()
        try:
            if not self._well:
                _signal(program, signal.SIGTERM)
                until = time.monotonic() + _PATIENCE
                while _ended(program) is None and time.monotonic() < until:
                    time.sleep(_TICK / 10)
        finally:
            # Also where somebody has no patience: nothing is left that only ignores the first signal.
            if not self._well:
                _signal(program, signal.SIGKILL)
            try:
                program.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._ctx.progress.warn(f"process {program.pid} ({self._words[0]}) cannot be ended, and runs on")


def _signal(program: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To its process group, whose number is nobody else's until it is waited for. Who became another user's, as sudo does, may not be told."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, number)


def _ended(program: subprocess.Popen[bytes]) -> str | None:
    """How the program ended badly, or nothing; None while it runs. It is not waited for yet."""
    try:
        found = os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        return "ended, and how cannot be known"
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return f"failed with exit code {found.si_status}" if found.si_status else ""
    names = {one.value: one.name for one in signal.Signals}
    return f"was ended by {names.get(found.si_status, f'signal {found.si_status}')}"
