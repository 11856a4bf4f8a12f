"""A served volume as a device of the kernel's own nbd driver.

When the service goes away, the driver keeps requests until somebody gives it new connections, which the service does when it is back
(`Reconnector`), or the time is over. Requests that were on their way wait for the driver's timeout before they are sent again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safehold.adapters.linux.attachment import RECONNECT, Attachment
from safehold.adapters.linux.nbd_netlink import NbdDriver
from safehold.model.errors import FailedError, SourceError
from safehold.model.progress import Progress
from safehold.wire.nbd_negotiation import Offered, open_export
from safehold.wire.peer import peer_user

__all__ = ["KernelDevice", "Reconnector"]

_CONNECTIONS = 2
"""As many requests are served at the same time, each connection in order but for those that wait for the vault."""
_ANSWER = 10.0
"""Seconds that the service may take to answer in the negotiation."""
_GONE = 10.0
_LOOK = 0.5
"""Seconds between two looks at what is attached."""


class KernelDevice:
    """See `attachment.Backing`."""

    @staticmethod
    def usable(service: Path) -> bool:
        """True where this kernel has the driver, and the service that listens there may give it new connections."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as knock:
            knock.connect(str(service))
            if peer_user(knock) != 0:
                return False
            NbdDriver.load()
            NbdDriver().close()
            return True
        return False

    def make(self, directory: Path, socket: Path, volume: str, turn: int) -> Attachment:
        """See `attachment.Backing`."""
        backend = f"safehold {uuid.uuid4().hex}"
        try:
            with _connections(socket, volume) as (offered, descriptors), NbdDriver() as driver:
                number = driver.connect(
                    descriptors,
                    size=offered.size,
                    flags=offered.flags,
                    backend=backend,
                    timeout=RECONNECT,
                    dead_after=RECONNECT,
                )
        except OSError as error:
            raise FailedError(
                f"the kernel makes no nbd device ({error.strerror})", on=f"volume {volume}", remedy="see dmesg"
            ) from error
        return Attachment(volume, f"/dev/nbd{number}", backend=backend)

    def there(self, attached: Attachment) -> bool:
        """See `attachment.Backing`."""
        try:
            told = Path(f"/sys/block/{Path(attached.device).name}/backend").read_text()
        except OSError:
            return False
        return told.strip() == attached.backend

    def dead(self, attached: Attachment) -> bool:
        """See `attachment.Backing`: a service that is back later brings it back, too."""
        return False

    def take(self, attached: Attachment, turn: int) -> None:
        """See `attachment.Backing`."""
        if not self.there(attached):
            return
        try:
            with NbdDriver() as driver:
                driver.disconnect(_number(attached))
        except OSError as error:
            raise FailedError(
                f"the kernel does not let the device go ({error.strerror})",
                on=attached.device,
                remedy="see who holds it: lsof " + attached.device,
            ) from error
        end = time.monotonic() + _GONE
        while self.there(attached):
            if time.monotonic() > end:
                raise FailedError(
                    "the device is still held by somebody",
                    on=attached.device,
                    remedy="see who: lsof " + attached.device,
                )
            time.sleep(0.02)


class Reconnector:
    """A thread of the service that gives devices of its volumes new connections: those of a service before it, and whichever lose one."""

    def __init__(self, attached: Callable[[], Sequence[Attachment]], service: Path, progress: Progress) -> None:
        """`attached` looks what is attached now, `service` is where this service listens. Needs root; without, `start` does nothing."""
        self._attached, self._service, self._progress = attached, service, progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reconnector", daemon=True)
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin."""
        if not os.geteuid():
            self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended. Harmless where it was not started."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                if self._mine():
                    with NbdDriver() as driver:
                        self._watch(driver)
            except OSError as error:
                self._tell("", f"devices of the kernel's nbd cannot be watched ({error.strerror})")
            self._stop.wait(_LOOK)

    def _watch(self, driver: NbdDriver) -> None:
        driver.listen()
        # Whatever was lost before anybody listened.
        waiting = {_number(one) for one in self._mine()}
        while not self._stop.is_set() and (mine := self._mine()):
            waiting = {_number(one) for one in mine if _number(one) in waiting and not self._reconnect(driver, one)}
            number = driver.next_dead(_LOOK)
            if number is not None:
                waiting.add(number)

    def _mine(self) -> list[Attachment]:
        return [one for one in self._attached() if one.backend]

    def _reconnect(self, driver: NbdDriver, attached: Attachment) -> bool:
        """True where the device has what it needs, or is none any more."""
        try:
            with _connections(self._service, attached.volume) as (_, descriptors):
                driver.reconnect(_number(attached), descriptors, attached.backend)
        except SourceError as error:
            self._tell(attached.volume, f"{attached.device} cannot be connected to {attached.volume} again: {error}")
            return False
        except OSError as error:
            # It has all its connections; or it went meanwhile.
            return error.errno in (errno.ENOSPC, errno.EINVAL, errno.ENODEV)
        self._told.discard(attached.volume)
        return True

    def _tell(self, of: str, what: str) -> None:
        if of not in self._told:
            self._told.add(of)
            self._progress.warn(what)


@contextlib.contextmanager
def _connections(service: Path, volume: str) -> Iterator[tuple[Offered, list[int]]]:
    """What the service says of a volume, and the descriptors of connections to it, which the driver takes over by its own."""
    with contextlib.ExitStack() as stack:
        opened = [open_export(str(service), volume, _ANSWER) for _ in range(_CONNECTIONS)]
        for connection, _ in opened:
            stack.callback(connection.close)
        yield opened[0][1], [connection.fileno() for connection, _ in opened]


def _number(attached: Attachment) -> int:
    return int(Path(attached.device).name.removeprefix("nbd"))
