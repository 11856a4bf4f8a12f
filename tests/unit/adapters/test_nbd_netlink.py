"""What the kernel's nbd driver says over netlink, played by a socket pair. The real driver is in tests/e2e, in a guest."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from safehold.adapters.linux import nbd_netlink
from safehold.adapters.linux.nbd_netlink import NbdDriver, NbdNews

FAMILY, GROUP = 31, 9
Answer = Callable[[int, int, bytes], bytes]


def attribute(kind: int, body: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(body), kind) + body).ljust(4 + -(-len(body) // 4) * 4, b"\0")


def message(kind: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body.ljust(-(-len(body) // 4) * 4, b"\0")


def order(kind: int, sequence: int, command: int, body: bytes = b"") -> bytes:
    return message(kind, sequence, struct.pack("=BBH", command, 1, 0) + body)


def dead(number: int) -> bytes:
    return order(FAMILY, 0, 4, attribute(1, struct.pack("=I", number)))


def acknowledged(sequence: int, code: int = 0) -> bytes:
    return message(2, sequence, struct.pack("=i", -code) + bytes(16))


class Kernel:
    """Each socket that the driver opens is a pair, of which this has the other end."""

    def __init__(self) -> None:
        self.serving: list[threading.Thread] = []
        self.answers: list[Answer] = []
        self.asked: list[tuple[int, bytes]] = []

    def open(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.serving.append(threading.Thread(target=self._serve, args=(theirs,), daemon=True))
        self.serving[-1].start()
        return ours

    def _serve(self, end: socket.socket) -> None:
        with end, contextlib.suppress(ConnectionError):
            while data := end.recv(65536):
                self._answer(end, data)

    def _answer(self, end: socket.socket, data: bytes) -> None:
        _, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        command, body = data[16], data[20:]
        if kind == 0x10:
            group = attribute(1, attribute(1, b"nbd_mc_group\0") + attribute(2, struct.pack("=I", GROUP)))
            told = attribute(1, struct.pack("=H", FAMILY)) + attribute(2, b"nbd\0") + attribute(7, group)
            end.send(order(0x10, sequence, 1, told))
            end.send(acknowledged(sequence))
            return
        self.asked.append((command, body))
        for datagram in self.answers.pop(0)(sequence, command, body).split(b"|cut|"):
            end.send(datagram)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel()
    monkeypatch.setattr(nbd_netlink, "_generic", made.open)
    yield made
    for thread in made.serving:
        thread.join()


def test_the_family_and_its_group(kernel: Kernel) -> None:
    with NbdDriver() as driver:
        assert (driver.family, driver.news_group) == (FAMILY, GROUP)


def test_an_answer_is_the_one_to_this_question(kernel: Kernel) -> None:
    """Neither news nor a late answer to another question is taken for it."""

    def answer(sequence: int, command: int, body: bytes) -> bytes:
        stale = order(FAMILY, sequence - 1, 1, attribute(1, struct.pack("=I", 77)))
        mine = order(FAMILY, sequence, 1, attribute(1, struct.pack("=I", 5)))
        late = acknowledged(sequence - 1, errno.EIO)
        return stale + dead(3) + mine + b"|cut|" + late + dead(4) + b"|cut|" + acknowledged(sequence)

    kernel.answers.append(answer)
    with NbdDriver() as driver:
        assert driver.connect([7], size=1 << 20, flags=1, backend="safehold x", timeout=0, dead_after=30) == 5
    command, body = kernel.asked[0]
    assert command == 1
    assert attribute(10, b"safehold x\0") in body
    assert attribute(4, struct.pack("=Q", 0)) in body
    assert attribute(8, struct.pack("=Q", 30)) in body


def test_an_error_is_raised(kernel: Kernel) -> None:
    kernel.answers.append(lambda sequence, command, body: acknowledged(sequence, errno.EBUSY))
    with NbdDriver() as driver, pytest.raises(OSError, match="busy") as caught:
        driver.disconnect(3)
    assert caught.value.errno == errno.EBUSY


class News:
    """A socket whose group says what it is given."""

    def __init__(self, *said: bytes | OSError) -> None:
        self.said = list(said)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert value == GROUP

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, length: int) -> bytes:
        said = self.said.pop(0) if self.said else TimeoutError()
        if isinstance(said, OSError):
            raise said
        return said

    def close(self) -> None:
        pass


def test_all_of_the_news_in_a_datagram(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    other = order(FAMILY, 0, 5) + order(FAMILY + 1, 0, 4, attribute(1, struct.pack("=I", 8)))
    empty = order(FAMILY, 0, 4) + message(FAMILY, 0, b"")
    said = News(dead(3) + other + dead(4) + empty, OSError(errno.ENOBUFS, "no buffer"), OSError(errno.EPERM, "no"))
    with NbdDriver() as driver:
        monkeypatch.setattr(nbd_netlink, "_generic", lambda: said)
        with NbdNews(driver) as news:
            assert news.dead(0.1) == {3, 4}
            assert news.dead(0.1) == set(), "what was lost is looked for by whoever asks"
            with pytest.raises(PermissionError):
                news.dead(0.1)
            assert news.dead(0.1) == set()
