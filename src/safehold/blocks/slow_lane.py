"""What one NBD connection does beside its loop: threads for requests that wait, and how those are ended that may change something."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from safehold.wire.nbd_outlet import Outlet
from safehold.wire.nbd_replies import CAPACITY, Replies

__all__ = ["Changing", "SlowLane"]

_LOOK = 0.1
"""Seconds until it looks again at what it waits for."""
_WAITING = 128
"""Requests in one lane that are under way or wait for a thread; with more, the connection's next requests wait too. The kernel's driver never has
more on one connection.
"""


class SlowLane:
    """A few threads for the requests of one connection that wait for the same kind of thing; they start with the first of these."""

    def __init__(self, threads: int, outlet: Outlet, structured: bool, cut: Callable[[], None]) -> None:
        """`cut` is called where a reply cannot be sent."""
        self._outlet = outlet
        self._structured = structured
        self._cut = cut
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="nbd-slow")
        self._places = threading.BoundedSemaphore(_WAITING)

    def add(self, waiting: Replies, job: Callable[[Replies], None]) -> None:
        """Carry out `job` on another thread; `waiting` are replies that must not wait where all places are taken."""
        if not self._places.acquire(blocking=False):
            waiting.flush()
            self._places.acquire()
        self._threads.submit(self._run, job)

    def _run(self, job: Callable[[Replies], None]) -> None:
        try:
            late = Replies(self._outlet, self._structured, CAPACITY)
            job(late)
            late.flush()
        except OSError:
            self._cut()
        finally:
            self._places.release()

    def drain(self, deadline: float) -> None:
        """Return when nothing is under way. The caller sees that nothing is added meanwhile. A client that takes no replies is cut off from then
        on (time.monotonic); one that waits for what it asked for is not.
        """
        for _ in range(_WAITING):
            while not self._places.acquire(timeout=_LOOK):
                if time.monotonic() > deadline and self._outlet.stalled:
                    self._cut()
        for _ in range(_WAITING):
            self._places.release()

    def close(self) -> None:
        """Return when nothing is under way; nothing is taken any more."""
        self._threads.shutdown(wait=True)


class Changing:
    """Who may change something for one connection at the moment: its loop, and changes that waited. Thread-safe."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._underway = 0
        self.ended = False

    @contextlib.contextmanager
    def begun(self) -> Iterator[bool]:
        """Inside, something may be changed where this is true; it is false after `end`."""
        with self._turn:
            allowed = not self.ended
            self._underway += allowed
        try:
            yield allowed
        finally:
            with self._turn:
                self._underway -= allowed
                self._turn.notify_all()

    def end(self) -> None:
        """Let nobody begin from here on. What has begun looks at `ended` before each step."""
        with self._turn:
            self.ended = True

    def wait(self) -> None:
        """Return once nobody who began is at it any more."""
        with self._turn:
            self._turn.wait_for(lambda: not self._underway)
