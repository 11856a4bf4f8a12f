"""The volume service gives devices of the kernel's nbd new connections: those of a service before it, and whichever lose theirs."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safehold.adapters.linux.attachment import Attachment
from safehold.adapters.linux.kernel_device import connection_to, number_of
from safehold.adapters.linux.nbd_netlink import NbdDriver, NbdNews
from safehold.model.errors import SafeholdError
from safehold.model.progress import Progress

__all__ = ["Reconnector"]

_LOOK = 0.5
"""Seconds between two looks at what is attached and has no connection."""
_LOOK_AT_ALL = 5.0
"""Seconds between two looks at every device: the kernel drops news where there is much of it. A device that has its connection keeps it."""


class Reconnector:
    """One thread. `problem` says what is wrong at the moment."""

    def __init__(self, attached: Callable[[], Sequence[Attachment]], service: Path, progress: Progress) -> None:
        """`attached` looks what is attached now, `service` is where this service listens. Needs root; without, `start` does nothing."""
        self._attached, self._service, self._progress = attached, service, progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reconnector", daemon=True)
        self._problems: dict[str, str] = {}
        """By volume; under no name, what concerns all of them."""
        self._watched: frozenset[str] = frozenset()

    def start(self) -> None:
        """Begin."""
        if not os.geteuid():
            self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended. Harmless where it was not started."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def problem(self, volume: str) -> str:
        """Why the device of a volume may lack its connection, or nothing. Any thread."""
        of_all = self._problems.get("", "") if volume in self._watched else ""
        return self._problems.get(volume, of_all)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                if self._mine():
                    with NbdDriver() as driver, NbdNews(driver) as news:
                        self._watch(driver, news)
                else:
                    self._problems.clear()
            except Exception as error:  # a thread that died would leave devices without a connection for ever
                self._tell("", f"devices of the kernel's nbd cannot be watched ({_reason(error)})")
            self._stop.wait(_LOOK)

    def _watch(self, driver: NbdDriver, news: NbdNews) -> None:
        waiting: set[int] = set()
        due = 0.0
        while not self._stop.is_set() and (mine := self._mine()):
            if time.monotonic() >= due:
                # The first time that is whatever was lost before anybody listened.
                waiting = {number_of(one) for one in mine}
                due = time.monotonic() + _LOOK_AT_ALL
            asked = [one for one in mine if number_of(one) in waiting]
            waiting = {number_of(one) for one in asked if not self._reconnect(driver, one)}
            for gone in set(self._problems) - {one.volume for one in mine} - {""}:
                self._problems.pop(gone, None)
            waiting |= news.dead(_LOOK)
            self._problems.pop("", None)

    def _mine(self) -> list[Attachment]:
        mine = [one for one in self._attached() if one.backend]
        self._watched = frozenset(one.volume for one in mine)
        return mine

    def _reconnect(self, driver: NbdDriver, attached: Attachment) -> bool:
        """True where the device has what it needs, or is none any more."""
        try:
            with connection_to(self._service, attached.volume) as (_, descriptor):
                driver.reconnect(number_of(attached), [descriptor], attached.backend)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EINVAL, errno.ENODEV):
                # It has its connection; or it went meanwhile.
                self._problems.pop(attached.volume, None)
                return True
            self._tell(
                attached.volume, f"{attached.device} cannot be connected to {attached.volume} again: {_reason(error)}"
            )
            return False
        self._problems.pop(attached.volume, None)
        return True

    def _tell(self, of: str, what: str) -> None:
        if self._problems.get(of) != what:
            self._problems[of] = what
            self._progress.warn(what)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, SafeholdError) else f"{type(error).__name__}: {error}"
