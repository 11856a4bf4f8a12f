"""Whatever bytes a client sends: its connection may end, the server and its other clients go on."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehold.blocks.server import NbdServer
from safehold.model.progress import Silent
from safehold.testing.file_export import FixedDirectory
from safehold.wire import nbd_protocol as nbd
from tests.nbd import HELLO, MemoryExport, RawClient, go, metadata, negotiation, option, request

SESSIONS = [
    negotiation()
    + request(nbd.CMD_WRITE, 1, 0, 4096)
    + b"a" * 4096
    + request(nbd.CMD_READ, 2, 0, 100_000)
    + request(nbd.CMD_BLOCK_STATUS, 3, 0, 65536)
    + request(nbd.CMD_TRIM, 4, 0, 4096, nbd.CMD_FLAG_FUA)
    + request(nbd.CMD_CACHE, 5, 0, 4096)
    + request(nbd.CMD_FLUSH, 6)
    + request(nbd.CMD_DISC, 7),
    HELLO
    + option(nbd.OPT_LIST)
    + go("disk", nbd.OPT_INFO)
    + metadata("disk", b"base:", kind=nbd.OPT_LIST_META_CONTEXT)
    + go("disk")
    + request(nbd.CMD_READ, 1, 0, 70_000)
    + request(nbd.CMD_WRITE_ZEROES, 2, 100, 1000, nbd.CMD_FLAG_NO_HOLE),
    HELLO + option(nbd.OPT_EXPORT_NAME, b"disk") + request(nbd.CMD_READ, 1, 0, 10) * 50,
]


class Heard(Silent):
    """What the operator was told: nothing, as long as the server foresaw what came."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class World:
    def __init__(self, folder: str) -> None:
        self.heard = Heard()
        self.directory = FixedDirectory({"disk": MemoryExport(), "other": MemoryExport()})
        self.server = NbdServer(str(Path(folder) / "s"), self.directory, progress=self.heard)
        self.witness = RawClient(self.server.path)
        self.witness.settle(name="other")
        self.count = 0

    def throw(self, data: bytes) -> None:
        """Send it on a connection of its own, hang up, and see that the others do not mind."""
        with RawClient(self.server.path) as client:
            reader = threading.Thread(target=client.at_end)
            reader.start()
            try:
                client.send(data)
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            reader.join()
        self.count += 1
        payload = self.count.to_bytes(8, "big")
        self.witness.send(request(nbd.CMD_WRITE, self.count, 0, 8) + payload + request(nbd.CMD_READ, self.count, 0, 8))
        assert self.witness.simple() == (self.count, 0)
        assert self.witness.chunk().body[8:] == payload


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        world = World(folder)
        yield world
        world.witness.socket.close()
        world.server.stop()
        assert world.directory.held == {"disk": 0, "other": 0}
        assert not world.heard.warnings


fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzzed
@given(start=st.sampled_from([b"", HELLO, negotiation()]), data=st.binary(max_size=3000))
def test_random_bytes(world: World, start: bytes, data: bytes) -> None:
    world.throw(start + data)


@fuzzed
@given(data=st.data())
def test_sessions_with_mistakes(world: World, data: st.DataObject) -> None:
    session = bytearray(data.draw(st.sampled_from(SESSIONS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(session) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "repeat"])):
            case "flip":
                session[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del session[max(at, 1) :]
            case "insert":
                session[at:at] = data.draw(st.binary(min_size=1, max_size=40))
            case "drop":
                del session[at : min(at + data.draw(st.integers(1, 40)), len(session) - 1)]
            case _:
                session[at:at] = session[at : at + 64]
    world.throw(bytes(session))


numbers = st.sampled_from([0, 1, 4096, (1 << 20) - 1, 1 << 20, (32 << 20) + 1, (1 << 31), (1 << 32) - 1])


@fuzzed
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(0, 2**64 - 1),
            numbers | st.integers(0, 2**64 - 1),
            numbers,
            st.integers(0, 63),
        ),
        max_size=30,
    )
)
def test_requests_of_any_content(world: World, asked: list[tuple[int, int, int, int, int]]) -> None:
    world.throw(negotiation() + b"".join(request(*one) for one in asked))
