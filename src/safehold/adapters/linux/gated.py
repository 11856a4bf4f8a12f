"""Programs that make something quiet. They start only once the watchdog knows which process to end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safehold.ports.bracket import Begin

__all__ = ["Ended", "run_gated"]

_GATE = 'read -r go && exec "$@"'
"""Waits for a line before it becomes the program. When this process dies first, there is no line and no program."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a program left: its exit code, and the first MiB of what it printed."""

    code: int
    said: bytes

    @property
    def last_line(self) -> str:
        """Of what it printed."""
        return self.said.decode(errors="replace").strip().rpartition("\n")[2]


def run_gated(
    command: Sequence[str], environment: Mapping[str, str], directory: str, seconds: float, begin: Begin | None
) -> Ended:
    """Run a program to its end, with `begin` called before it starts. TimeoutError where it takes longer than `seconds`; it is ended then, with its
    process group.

    Its output is kept in memory: no disk has to be writable for it.
    """
    output = os.memfd_create("output")
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "gate", *command],
            env=dict(environment),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            if begin is not None:
                begin(process.pid)
            process.communicate(b"go\n", timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError(f"did not end within {seconds:g} s") from error
            raise
        return Ended(process.returncode, os.pread(output, 1 << 20, 0))
    finally:
        os.close(output)
