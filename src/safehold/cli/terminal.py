"""What a run says while it works: one moving line on a terminal, plain lines in a pipe. Everything goes to standard
error.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TextIO

from safehold.model.clock import Clock
from safehold.model.shown import printable
from safehold.model.units import format_duration, format_rate, format_size

__all__ = ["LineProgress"]

_TERMINAL_SECONDS, _PIPE_SECONDS = 0.2, 30.0
"""Between two looks at the progress: often enough to be alive on a terminal, seldom enough for a log."""


class LineProgress:
    """A `Progress` on a text stream. Thread-safe."""

    def __init__(self, clock: Clock, run_id: str, stream: TextIO | None = None) -> None:
        self._clock, self._run_id = clock, run_id
        self._stream = stream or sys.stderr
        self._moving = self._stream.isatty()
        self._every = _TERMINAL_SECONDS if self._moving else _PIPE_SECONDS
        self._lock = threading.Lock()
        self._task = ""
        self._total: int | None = None
        self._done = 0
        self._began = self._shown = 0.0

    def start(self, task: str, total: int | None) -> None:
        """See `model.progress.Progress`."""
        with self._lock:
            self._task, self._total, self._done = task, total, 0
            self._began = self._shown = self._clock.monotonic()

    def advance(self, amount: int) -> None:
        """See `model.progress.Progress`."""
        with self._lock:
            self._done += amount
            now = self._clock.monotonic()
            if now - self._shown >= self._every:
                self._shown = now
                self._show(now)

    def _show(self, now: float) -> None:
        spent = now - self._began
        text = f"{printable(self._task)}: {format_size(self._done)}"
        if self._total:
            share = min(1.0, self._done / self._total)
            left = spent / share - spent if share else 0.0
            text += f" of {format_size(self._total)} ({share:.0%}), {format_rate(self._done, spent)}, {format_duration(left)} left"
        else:
            text += f", {format_rate(self._done, spent)}"
        if self._moving:
            self._write(f"\r\x1b[K{text}")
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        clear = "\r\x1b[K" if self._moving else ""
        prefix = "" if self._moving else f"[{self._run_id}] "
        # Where both go to one file, this comes after what was printed before it.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        self._write(f"{clear}{prefix}{printable(text)}\n")

    def _write(self, text: str) -> None:
        # A log for which there is no room, or that nobody reads any more, ends no work.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def note(self, text: str) -> None:
        """See `model.progress.Progress`."""
        with self._lock:
            self._line(text)

    def warn(self, text: str) -> None:
        """See `model.progress.Progress`."""
        with self._lock:
            self._line(f"warning: {text}")

    def done(self) -> None:
        """See `model.progress.Progress`."""
        with self._lock:
            if self._moving:
                self._write("\r\x1b[K")
