"""What a run carries instead of global state."""

from __future__ import annotations

import _thread
import contextlib
import threading
import uuid
from dataclasses import dataclass, field

from safehold.model.clock import Clock, SystemClock
from safehold.model.errors import CancelledError
from safehold.model.progress import Progress, Silent

__all__ = ["CancelToken", "Context"]


class CancelToken:
    """Set once, by any thread or a signal handler; long loops look at it between pieces of work."""

    def __init__(self) -> None:
        self._cancelled = False
        self._waking = False
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the run to stop at the next safe place."""
        self._cancelled = True
        if self._waking:
            return
        # Never `set` from here: it takes a lock that is not reentrant, and a signal may come while this very thread has it, in `wait` or in the
        # handler of another signal. A bare thread is started without any lock of Python's; where none can be, those who wait see it when their
        # time is over, and the next call tries again.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(self._event.set, ())
            self._waking = True

    def wait(self, seconds: float | None = None) -> bool:
        """Return true once `cancel` was called, and false after so many seconds without."""
        return self._cancelled or self._event.wait(seconds) or self._cancelled

    def check(self) -> None:
        """Raise CancelledError once `cancel` was called."""
        if self._cancelled:
            raise CancelledError("the run was stopped", remedy="start it again")


@dataclass(frozen=True)
class Context:
    """Clock, progress, cancel token and run id of one run; `run_id` stands in every log line of it."""

    clock: Clock = field(default_factory=SystemClock)
    progress: Progress = field(default_factory=Silent)
    cancel: CancelToken = field(default_factory=CancelToken)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
