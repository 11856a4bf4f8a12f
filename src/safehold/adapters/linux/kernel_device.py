"""A served volume as a device of the kernel's own nbd driver.

The driver has one connection and does not give up on a request that is not answered: one that it sent again by another connection might be carried
out after newer ones. When the service goes away, the driver keeps requests until somebody gives it a new connection, which the service does when it
is back (see `reconnector`), or the time is over. Requests that were on their way are sent again then, at the driver's next look at them.

Source: the kernel's drivers/block/nbd.c. That one connection without a timeout is waited for and then replaced is so from Linux 5.9 on, a device's
backend is told from 5.14 on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from safehold.adapters.linux.attachment import RECONNECT, Attachment, Unsuitable
from safehold.adapters.linux.holders import claimed, device_number
from safehold.adapters.linux.mounts import major_minor
from safehold.adapters.linux.nbd_netlink import NbdDriver
from safehold.model.errors import FailedError
from safehold.wire.nbd_negotiation import Offered, open_export
from safehold.wire.peer import peer_user

__all__ = ["KernelDevice", "connection_to", "number_of"]

_BLOCK = Path("/sys/block")
_FOR_EVER = 0
_ANSWER = 10.0
"""Seconds that the service may take to answer in the negotiation."""
_GONE = 10.0


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
        backend = _backend(directory, volume)
        self._end_left(backend, volume, turn)
        try:
            made = self._connect(socket, volume, backend)
        except OSError as error:
            raise FailedError(
                f"the kernel makes no nbd device ({error.strerror})", on=f"volume {volume}", remedy="see dmesg"
            ) from error
        except BaseException:
            # An interrupt may come between the driver's work and its answer.
            with contextlib.suppress(FailedError):
                self._end_left(backend, volume, turn)
            raise
        why = _unfit(made)
        if why:
            with contextlib.suppress(OSError), NbdDriver() as driver:
                driver.disconnect(number_of(made))
            raise Unsuitable(why)
        return made

    def _connect(self, service: Path, volume: str, backend: str) -> Attachment:
        with connection_to(service, volume) as (offered, descriptor), NbdDriver() as driver:
            number = driver.connect(
                [descriptor],
                size=offered.size,
                flags=offered.flags,
                backend=backend,
                timeout=_FOR_EVER,
                dead_after=RECONNECT,
            )
        return Attachment(volume, f"/dev/nbd{number}", pid=os.getpid(), backend=backend)

    def _end_left(self, backend: str, volume: str, turn: int) -> None:
        """Take devices away that are on no record: whoever made them was killed before they were."""
        for place in sorted(_BLOCK.glob("nbd*")):
            left = Attachment(volume, f"/dev/{place.name}", backend=backend)
            if self.there(left):
                self.take(left, turn)

    def there(self, attached: Attachment) -> bool:
        """See `attachment.Backing`."""
        try:
            told = (_BLOCK / Path(attached.device).name / "backend").read_text()
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
        # The driver asks nobody who has the device.
        with claimed(attached.device):
            try:
                with NbdDriver() as driver:
                    driver.disconnect(number_of(attached))
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


@contextlib.contextmanager
def connection_to(service: Path, volume: str) -> Iterator[tuple[Offered, int]]:
    """What the service says of a volume, and the descriptor of a connection to it, which the driver takes over by its own. SourceError."""
    opened, offered = open_export(str(service), volume, _ANSWER)
    with opened:
        yield offered, opened.fileno()


def number_of(attached: Attachment) -> int:
    """By which the driver knows a device."""
    return int(Path(attached.device).name.removeprefix("nbd"))


def _backend(directory: Path, volume: str) -> str:
    """The same whenever that volume is attached: a device that is on no record is known by it."""
    told = f"{os.path.realpath(directory)}\0{volume}"
    return f"safehold {hashlib.sha256(told.encode()).hexdigest()[:32]}"


def _unfit(made: Attachment) -> str:
    """Why a device that the driver made cannot be used here, or nothing."""
    if not KernelDevice().there(made):
        return "this kernel does not tell whose an nbd device is"
    try:
        node = os.stat(made.device)
    except OSError as error:
        return f"{made.device} is not there ({error.strerror})"
    if not stat.S_ISBLK(node.st_mode) or major_minor(node.st_rdev) != device_number(made.device):
        return f"{made.device} is something else"
    return ""
