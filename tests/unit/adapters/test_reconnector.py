"""The thread that gives devices new connections goes on whatever happens to it, and says what is wrong now."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from safehold.adapters.linux import reconnector
from safehold.adapters.linux.attachment import Attachment
from safehold.adapters.linux.reconnector import Reconnector
from safehold.model.errors import SourceError
from safehold.model.progress import Silent
from safehold.wire.nbd_negotiation import Offered


class World(Silent):
    """Attached devices, a driver, its news and a service that answers or not."""

    def __init__(self) -> None:
        self.attached = [Attachment("a", "/dev/nbd1", backend="x"), Attachment("b", "/dev/nbd2", backend="y")]
        self.broken: dict[str, Exception] = {}
        self.news: set[int] = set()
        self.asked: list[int] = []
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def look(self) -> Sequence[Attachment]:
        self.fail("look")
        return self.attached

    def fail(self, where: str) -> None:
        if where in self.broken:
            raise self.broken[where]

    def driver(self) -> World:
        self.fail("driver")
        return self

    def listen(self, driver: World) -> World:
        return self

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def dead(self, seconds: float) -> set[int]:
        self.fail("news")
        time.sleep(0.01)
        told, self.news = self.news, set()
        return told

    def reconnect(self, number: int, sockets: Sequence[int], backend: str) -> None:
        self.asked.append(number)
        self.fail(f"driver {number}")

    @contextlib.contextmanager
    def connection(self, service: Path, volume: str) -> Iterator[tuple[Offered, int]]:
        self.fail(f"service {volume}")
        yield Offered(1 << 20, 1), 9


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(reconnector, "NbdDriver", made.driver)
    monkeypatch.setattr(reconnector, "NbdNews", made.listen)
    monkeypatch.setattr(reconnector, "connection_to", made.connection)
    monkeypatch.setattr(reconnector, "_LOOK", 0.01)
    return made


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnector, "_LOOK_AT_ALL", 3600.0)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnector, "_LOOK_AT_ALL", 0.02)


@pytest.fixture
def running(world: World) -> Iterator[Reconnector]:
    made = Reconnector(world.look, Path("service"), world)
    made.start()
    yield made
    made.stop()


@pytest.mark.usefixtures("seldom")
def test_all_at_first_and_then_those_of_the_news(world: World, running: Reconnector) -> None:
    until(lambda: len(world.asked) >= 2)
    assert sorted(world.asked) == [1, 2]
    world.news = {2, 9}
    until(lambda: len(world.asked) >= 3)
    assert world.asked[2:] == [2]


@pytest.mark.usefixtures("often")
def test_all_of_them_whatever_the_news(world: World, running: Reconnector) -> None:
    until(lambda: world.asked.count(1) > 3 and world.asked.count(2) > 3)


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("error", [SourceError("no answer"), OSError(5, "broken"), ValueError("a mistake")])
def test_one_that_cannot_be_connected(world: World, running: Reconnector, error: Exception) -> None:
    until(lambda: len(world.asked) >= 2)
    for _ in range(2):
        world.broken["service b"] = error
        told = len(world.warned)
        world.news = {1, 2}
        until(lambda: running.problem("b"))
        assert "cannot be connected to b again" in running.problem("b")
        assert running.problem("a") == ""
        time.sleep(0.1)
        assert len(world.warned) == told + 1, "once for each time that it begins"
        world.broken = {}
        until(lambda: not running.problem("b"))


@pytest.mark.parametrize("where", ["look", "news", "driver 1"])
@pytest.mark.parametrize("error", [OSError(1, "not permitted"), RuntimeError("a mistake"), KeyError("x")])
def test_it_goes_on_after_anything(world: World, running: Reconnector, where: str, error: Exception) -> None:
    until(lambda: len(world.asked) >= 2)
    world.broken[where] = error
    world.news = {1}
    until(lambda: running.problem("a"))
    if where != "driver 1":
        assert "cannot be watched" in running.problem("b")
        time.sleep(0.1)
        assert len(world.warned) == 1
    assert running.problem("other") == ""
    world.broken = {}
    until(lambda: not running.problem("a"))
    asked = len(world.asked)
    world.news = {1}
    until(lambda: len(world.asked) > asked)


def test_a_driver_that_comes_later(world: World) -> None:
    world.broken["driver"] = FileNotFoundError(2, "No such file or directory")
    running = Reconnector(world.look, Path("service"), world)
    running.start()
    until(lambda: running.problem("a"))
    world.broken = {}
    until(lambda: len(world.asked) >= 2 and not running.problem("a"))
    running.stop()


@pytest.mark.usefixtures("seldom")
def test_what_is_detached_has_no_problem(world: World, running: Reconnector) -> None:
    world.broken["service a"] = SourceError("no answer")
    world.news = {1}
    until(lambda: running.problem("a"))
    world.attached = world.attached[1:]
    until(lambda: not running.problem("a"))
    world.attached = []
    time.sleep(0.05)
