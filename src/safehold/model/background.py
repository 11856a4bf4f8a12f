"""Threads whose work can wait for that of others in the same process, and of other processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["background_thread"]

_NICENESS = 10
"""About a tenth of a processor that others want all of, and all of one that nobody wants: what is behind still ends some day."""


def background_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread, not started, that carries out `work` at a lower priority, and with it the threads that it starts (setpriority(2): on Linux
    niceness belongs to threads, and is passed on). It does not keep the process alive.
    """

    def run() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
        work()

    return threading.Thread(target=run, name=name, daemon=True)
