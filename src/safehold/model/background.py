"""Threads whose work can wait for that of others in the same process, and of other processes."""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Callable

__all__ = ["BackgroundLoop", "background_thread"]

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


class BackgroundLoop(abc.ABC):
    """A thread as of `background_thread` that does its turns until it is stopped: one when it is woken, and one when the time is over for which
    there was nothing to do.
    """

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._woken = False
        self.stopped = False
        self._thread = background_thread(self._work, name)

    @abc.abstractmethod
    def turn(self) -> float:
        """Do what there is to do; returns for how many seconds there is nothing more, 0 where there is."""

    @abc.abstractmethod
    def failed(self, error: Exception) -> float:
        """A turn failed, which never ends the thread: tell of it; returns in how many seconds to try again."""

    def start(self) -> None:
        """Begin with whatever there is."""
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Return when the turn that is under way has ended, and with it the thread."""
        self.stopped = True
        self.wake()
        self._thread.join()

    def _work(self) -> None:
        while not self.stopped:
            try:
                pause = self.turn()
            except Exception as error:  # the last line of defence: what is behind would be left undone for ever
                pause = self.failed(error)
            if pause:
                self._wait(pause)

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._woken, seconds)
            self._woken = False
