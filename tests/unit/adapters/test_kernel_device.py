"""Devices of the kernel's nbd with a driver and a /sys of the tests' own: what an old kernel, a missing node, a kill and an interrupt leave."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from safehold.adapters.linux import attach, holders, kernel_device
from safehold.adapters.linux.attachment import Attachment, Unsuitable
from safehold.adapters.linux.kernel_device import KernelDevice
from safehold.adapters.linux.loop_device import LoopDevice
from safehold.model.errors import FailedError
from safehold.wire.nbd_negotiation import Offered


class Driver:
    """Makes /sys/block/nbdN; `tells` whose a device is as kernels from 5.14 on do."""

    def __init__(self, root: Path) -> None:
        self.block = root / "block"
        self.block.mkdir()
        self.tells = True
        self.interrupt: BaseException | None = None
        self.connected: list[int] = []
        self.timeouts: set[tuple[int, int]] = set()

    def __call__(self) -> Driver:
        return self

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(
        self, sockets: Sequence[int], *, size: int, flags: int, backend: str, timeout: int, dead_after: int
    ) -> int:
        assert len(sockets) == 1
        self.timeouts.add((timeout, dead_after))
        number = next(n for n in range(16) if n not in self.connected)
        self.connected.append(number)
        place = self.block / f"nbd{number}"
        place.mkdir(exist_ok=True)
        (place / "dev").write_text(f"43:{number * 32}\n")
        if self.tells:
            (place / "backend").write_text(f"{backend}\n")
        if self.interrupt:
            raise self.interrupt
        return number

    def disconnect(self, number: int) -> None:
        self.connected.remove(number)
        (self.block / f"nbd{number}" / "backend").unlink(missing_ok=True)


@contextlib.contextmanager
def _served(service: Path, volume: str) -> Iterator[tuple[Offered, int]]:
    yield Offered(1 << 20, 1), 9


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path)
    monkeypatch.setattr(kernel_device, "NbdDriver", made)
    monkeypatch.setattr(kernel_device, "_BLOCK", made.block)
    monkeypatch.setattr(holders, "_CLASS", made.block)
    monkeypatch.setattr(holders, "_BRIEFLY", 0.3)
    monkeypatch.setattr(kernel_device, "connection_to", _served)
    return made


@pytest.fixture
def nodes(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has its node."""
    monkeypatch.setattr(kernel_device, "_unfit", lambda made: "" if KernelDevice().there(made) else "not told")


def make(tmp_path: Path, volume: str = "data") -> Attachment:
    return KernelDevice().make(tmp_path / "attached", tmp_path / "service", volume, 0)


@pytest.mark.usefixtures("nodes")
def test_one_connection_that_is_not_given_up(driver: Driver, tmp_path: Path) -> None:
    made = make(tmp_path)
    assert KernelDevice().there(made)
    assert driver.timeouts == {(0, 30)}
    KernelDevice().take(made, 0)
    assert not driver.connected


@pytest.mark.usefixtures("nodes")
def test_what_a_kill_left_is_taken_away_first(driver: Driver, tmp_path: Path) -> None:
    left, other = make(tmp_path), make(tmp_path, "other")
    made = make(tmp_path)
    assert made == left, "the number is free again"
    assert driver.connected == [1, 0]
    assert KernelDevice().there(other)
    elsewhere = KernelDevice().make(tmp_path / "home2", tmp_path / "service", "data", 0)
    assert elsewhere.backend != made.backend


@pytest.mark.usefixtures("nodes")
def test_devices_are_found_without_a_record(driver: Driver, tmp_path: Path) -> None:
    made, other = make(tmp_path), make(tmp_path, "other")
    (tmp_path / "attached").mkdir()
    (tmp_path / "attached" / ".lock").touch()
    for one in (made, other):
        (driver.block / Path(one.device).name / "pid").write_text(f"{os.getpid()}\n")
    assert attach.unrecorded(tmp_path / "attached", ["data", "more"]) == [made]
    # An unreadable record tells of a volume, too.
    (tmp_path / "attached" / "other.json").write_text("")
    assert attach.unrecorded(tmp_path / "attached", ["data"]) == [made, other]
    assert list(attach.unreadable(tmp_path / "attached")) == ["other"]
    assert attach.unrecorded(tmp_path / "elsewhere", ["data"]) == []


@pytest.mark.usefixtures("nodes")
def test_what_a_kill_left_and_somebody_has(driver: Driver, tmp_path: Path) -> None:
    make(tmp_path)
    (driver.block / "nbd0" / "holders" / "dm-3" / "dm").mkdir(parents=True)
    (driver.block / "nbd0" / "holders" / "dm-3" / "dm" / "name").write_text("vg-data\n")
    with pytest.raises(FailedError, match="/dev/mapper/vg-data lies on nbd0"):
        make(tmp_path)
    assert driver.connected == [0]


def test_a_kernel_that_does_not_say_whose_a_device_is(driver: Driver, tmp_path: Path) -> None:
    driver.tells = False
    with pytest.raises(Unsuitable, match="does not tell"):
        make(tmp_path)
    assert not driver.connected


def test_a_node_that_is_missing(driver: Driver, tmp_path: Path) -> None:
    """As in a container whose /dev is older than the driver. Where this machine has such a node, it is that of another device."""
    (driver.block / "nbd0").mkdir()
    with pytest.raises(Unsuitable, match="/dev/nbd0 is"):
        make(tmp_path)
    assert not driver.connected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()])
@pytest.mark.usefixtures("nodes")
def test_an_interrupt_leaves_nothing(driver: Driver, tmp_path: Path, error: BaseException) -> None:
    driver.interrupt = error
    with pytest.raises(type(error)):
        make(tmp_path)
    assert not driver.connected


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelDevice, "usable", staticmethod(lambda service: True))
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("usable")
def test_another_kind_of_device_takes_its_place(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Attachment("data", "/dev/loop7", str(tmp_path / "file"), 1, 1)
    monkeypatch.setattr(LoopDevice, "make", lambda *_: loop)
    driver.tells = False
    made = attach.attach(tmp_path / "attached", tmp_path / "service", "data")
    assert msgspec.structs.replace(made, made=0.0) == loop
    assert made.made > 0
    assert not driver.connected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.usefixtures("usable", "nodes")
def test_what_is_not_on_record_does_not_stay(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(attach, "_keep", fails)
    with pytest.raises(type(error)):
        attach.attach(tmp_path / "attached", tmp_path / "service", "data")
    assert not driver.connected
    assert attach.attachments(tmp_path / "attached") == []
