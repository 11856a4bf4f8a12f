"""The kernel's nbd driver: devices made of sockets that speak NBD, given new sockets, and taken away, over generic netlink.

Source: the kernel's include/uapi/linux/{netlink,genetlink,nbd-netlink}.h. Integers are the machine's own, attributes are padded to four bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from safehold.model.environment import plain_environment

__all__ = ["NbdDriver", "NbdNews"]

_GENERIC = 16
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_REQUEST, _ACK = 1, 4
_ERROR = 2
_CONTROL, _GET_FAMILY = 0x10, 3
_FAMILY_ID, _FAMILY_NAME, _GROUPS = 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2

_CONNECT, _DISCONNECT, _RECONFIGURE, _LINK_DEAD = 1, 2, 3, 4
_INDEX, _SIZE, _BLOCK, _TIMEOUT, _SERVER_FLAGS, _SOCKETS, _DEAD_AFTER, _BACKEND = 1, 2, 3, 4, 5, 7, 8, 10
_ITEM, _DESCRIPTOR = 1, 1
_NESTED = 0x8000

_MESSAGE = struct.Struct("=IHHII")
"""Length, type, flags, sequence, port."""
_ORDER = struct.Struct("=BBH")
"""Command, version, nothing; attributes follow."""
_ATTRIBUTE = struct.Struct("=HH")
_LONGEST = 65536
_PATIENCE = 10.0
_SECTOR = 512


class NbdDriver:
    """Talks to the driver. A context manager; needs root. Devices are known by their number: /dev/nbd0 is 0."""

    def __init__(self) -> None:
        """OSError where the kernel has no such driver loaded, or this network namespace does not see it."""
        self._socket = _generic()
        self._sequence = 0
        try:
            self._socket.settimeout(_PATIENCE)
            told = self._ask(_CONTROL, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0"))
            self.family = _short(told[_FAMILY_ID])
            self.news_group = next(
                struct.unpack("=I", group[_GROUP_ID])[0]
                for group in (dict(_attributes(body)) for _, body in _attributes(told[_GROUPS]))
                if group[_GROUP_NAME].rstrip(b"\0") == b"nbd_mc_group"
            )
            """See `NbdNews`."""
        except BaseException:
            self._socket.close()
            raise

    @staticmethod
    def load() -> None:
        """Have the kernel load the driver, where it is a module. What came of it the constructor says."""
        if not os.path.exists("/sys/module/nbd") and (modprobe := shutil.which("modprobe")):
            subprocess.run(
                [modprobe, "--quiet", "nbd"],
                env=plain_environment(os.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )

    def __enter__(self) -> NbdDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Devices stay."""
        self._socket.close()

    def connect(
        self, sockets: Sequence[int], *, size: int, flags: int, backend: str, timeout: int, dead_after: int
    ) -> int:
        """Make a device of descriptors of connections to one export, of `size` bytes and with its transmission flags; returns its number.

        `backend` is what it can be known by; `timeout` the seconds after which the driver gives up a connection that has not answered a
        request, 0: never; `dead_after` the seconds that requests wait for a connection when there is none, before they fail. OSError.
        """
        body = (
            _long(_SIZE, size)
            + _long(_BLOCK, _SECTOR)
            + _long(_TIMEOUT, timeout)
            + _long(_SERVER_FLAGS, flags)
            + _long(_DEAD_AFTER, dead_after)
            + _attribute(_BACKEND, backend.encode() + b"\0")
            + _listed(sockets)
        )
        return int(struct.unpack("=I", self._ask(self.family, _CONNECT, body)[_INDEX])[0])

    def reconnect(self, number: int, sockets: Sequence[int], backend: str) -> None:
        """Give a device new connections for those that have ended; where none has, nothing changes. OSError EINVAL where it has another
        `backend`.
        """
        body = _attribute(_INDEX, struct.pack("=I", number)) + _attribute(_BACKEND, backend.encode() + b"\0")
        self._ask(self.family, _RECONFIGURE, body + _listed(sockets))

    def disconnect(self, number: int) -> None:
        """Take a device away; requests under way fail. OSError."""
        self._ask(self.family, _DISCONNECT, _attribute(_INDEX, struct.pack("=I", number)))

    def _ask(self, family: int, command: int, body: bytes) -> Mapping[int, bytes]:
        """The attributes of the answer. OSError as the kernel says."""
        self._sequence += 1
        body = _ORDER.pack(command, 1, 0) + body
        self._socket.send(_MESSAGE.pack(_MESSAGE.size + len(body), family, _REQUEST | _ACK, self._sequence, 0) + body)
        answer: Mapping[int, bytes] = {}
        while True:
            for kind, sequence, told in _messages(self._socket.recv(_LONGEST)):
                if sequence != self._sequence:
                    continue  # the answer to a question that was given up
                if kind == family:
                    answer = dict(_attributes(told[_ORDER.size :]))
                elif kind == _ERROR:
                    code = -struct.unpack_from("=i", told)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answer


class NbdNews:
    """Hears of connections that end. A context manager; on a socket of its own, so that no answer is taken for news, and none of it is lost to an
    answer.
    """

    def __init__(self, driver: NbdDriver) -> None:
        """From here on. OSError."""
        self._family = driver.family
        self._socket = _generic()
        try:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, driver.news_group)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> NbdNews:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def dead(self, seconds: float) -> set[int]:
        """The numbers of devices that have lost a connection; none where none has within the seconds. Some may be missing where many came at
        once. OSError.
        """
        self._socket.settimeout(seconds)
        try:
            return _dead(self._family, self._socket.recv(_LONGEST))
        except TimeoutError:
            return set()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return set()
            raise


def _dead(family: int, data: bytes) -> set[int]:
    found = set()
    for kind, _, body in _messages(data):
        if kind == family and body[:1] == bytes([_LINK_DEAD]):
            number = dict(_attributes(body[_ORDER.size :])).get(_INDEX)
            if number is not None:
                found.add(int(struct.unpack("=I", number)[0]))
    return found


def _generic() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
    try:
        made.bind((0, 0))
    except BaseException:
        made.close()
        raise
    return made


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, body) of each message."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, sequence, _ = _MESSAGE.unpack_from(data, at)
        yield kind, sequence, data[at + _MESSAGE.size : at + length]
        at += max(_padded(length), _MESSAGE.size)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & ~_NESTED, data[at + _ATTRIBUTE.size : at + length]
        at += max(_padded(length), _ATTRIBUTE.size)


def _attribute(kind: int, body: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(body)
    return _ATTRIBUTE.pack(length, kind) + body.ljust(_padded(length) - _ATTRIBUTE.size, b"\0")


def _long(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _listed(sockets: Sequence[int]) -> bytes:
    items = (_attribute(_ITEM | _NESTED, _attribute(_DESCRIPTOR, struct.pack("=I", one))) for one in sockets)
    return _attribute(_SOCKETS | _NESTED, b"".join(items))


def _short(body: bytes) -> int:
    return int(struct.unpack("=H", body[:2])[0])


def _padded(length: int) -> int:
    return -(-length // 4) * 4
