"""Slow work on one volume: others are served, listed and sealed meanwhile, and it can be had for nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from safehold.app.uploader import Uploader
from safehold.blocks import directory as directory_module
from safehold.blocks.layout import SnapshotState, VolumeFiles, VolumeRecord
from safehold.model.errors import FailedError
from safehold.recovery.hydration import Hydrator
from tests.faults.test_recycle_bin import orders, told
from tests.sites import SIZE, UNIT, Site, content, dependent, until

PATIENCE = 20.0


class Slow:
    """What stands in an order's way until it may go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go_on.wait(PATIENCE)


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """Ending a hydrator takes its time, as it does where the vault does not answer."""
    slow, right = Slow(), Hydrator.stop

    def stop(self: Hydrator) -> None:
        slow()
        right(self)

    monkeypatch.setattr(Hydrator, "stop", stop)
    yield slow
    slow.go_on.set()


@pytest.mark.parametrize("order", ["delete", "resize"])
def test_nobody_waits_for_slow_work_on_another_volume(
    site: Site, slow: Slow, aside: ThreadPoolExecutor, order: str
) -> None:
    dependent(site, "data")
    site.up()
    site.down("read", "packs/")
    other = site.service.create("other", SIZE, "vault")
    site.write(other)
    service, directory = site.service, site.service.directory
    under_way: Future[object] = aside.submit(
        lambda: service.delete("data") if order == "delete" else service.resize("data", SIZE + UNIT)
    )
    assert slow.reached.wait(PATIENCE)
    what = f"{order}d"
    # What the others need is asked for aside: it would wait for ever, and not fail.
    assert aside.submit(directory.open, "other").result(PATIENCE) is not None
    assert aside.submit(lambda: told(site)["busy"]).result(PATIENCE) == {"data": what}
    snapshot = aside.submit(site.snapshot, "other").result(PATIENCE)
    refused: list[Callable[[], object]] = [
        lambda: orders(site).answer({"verb": "show", "name": "data"}),
        lambda: site.snapshot("data"),
        lambda: service.delete("data"),
        lambda: service.resize("data", SIZE + 2 * UNIT),
        lambda: service.create("data", SIZE, "vault"),
    ]
    for one in refused:
        with pytest.raises(FailedError, match=f"the volume is being {what}"):
            one()
    assert directory.open("data") is None
    assert "data" not in directory.names()
    slow.go_on.set()
    under_way.result(PATIENCE)
    assert directory.busy == {}
    assert ("data" in directory.names()) == (order == "resize")
    site.up()
    assert site.finish(snapshot).state is SnapshotState.COMPLETED
    directory.release("other")


def test_the_end_of_the_service_waits_for_what_is_under_way(
    site: Site, monkeypatch: pytest.MonkeyPatch, aside: ThreadPoolExecutor
) -> None:
    held = site.service.create("data", SIZE, "vault")
    site.write(held)
    was, slow, right = content(held), Slow(), directory_module.grow_volume

    def grow(files: VolumeFiles, record: VolumeRecord, size: int) -> None:
        slow()
        right(files, record, size)

    monkeypatch.setattr(directory_module, "grow_volume", grow)
    service = site.service
    resized = aside.submit(service.resize, "data", SIZE + UNIT)
    assert slow.reached.wait(PATIENCE)
    ended = aside.submit(service.stop)
    until(lambda: service.directory._closing)
    with pytest.raises(FailedError, match="about to end"):
        service.create("late", SIZE, "vault")
    assert not ended.done()
    slow.go_on.set()
    assert resized.exception(PATIENCE) is None
    ended.result(PATIENCE)
    site.service = site.begin()
    assert content(site.service.directory.get("data")) == was + bytes(UNIT)


def test_a_group_is_not_given_up_before_it_is_known_what_becomes_of_a_volume(
    site: Site, monkeypatch: pytest.MonkeyPatch, aside: ThreadPoolExecutor
) -> None:
    """A deletion that fails leaves the volume, with its part of the snapshot."""
    one, two = (site.service.create(name, SIZE, "vault") for name in ("one", "two"))
    site.write(one)
    site.write(two)
    was = content(one), content(two)
    fault = site.down("put", "packs/")
    snapshot = site.snapshot("one", "two")
    until(lambda: bool(fault.hits) and not site.service._uploader.sending)
    slow = Slow()

    def full(self: object, directory: Path, token: str) -> Path:
        slow()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(directory_module.RecycleBin, "put", full)
        patch.setattr(site.service._uploader, "sending", frozenset())
        deleted = aside.submit(site.service.delete, "two")
        assert slow.reached.wait(PATIENCE)
        turns, right = [], Uploader._wait

        def wait(self: Uploader, seconds: float) -> None:
            turns.append(seconds)
            right(self, min(seconds, 0.05))

        patch.setattr(Uploader, "_wait", wait)
        site.up()
        site.service._uploader.wake()
        until(lambda: len(turns) > 3)
        assert site.state(snapshot).state is SnapshotState.PENDING
        slow.go_on.set()
        assert isinstance(deleted.exception(PATIENCE), OSError)
    done = site.finish(snapshot)
    assert done.state is SnapshotState.COMPLETED
    assert (site.point(done.point, "one"), site.point(done.point, "two")) == was
