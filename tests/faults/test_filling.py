"""Who fills volumes in: one hydrator for each that is served, whoever asks for it at the same time, and none for one that is not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from safehold.blocks.held import HeldVolume
from safehold.recovery.hydration import Hydrator
from tests.faults.test_busy_volumes import PATIENCE, Slow
from tests.sites import Site, dependent, until


class Watched:
    """Hydrators that were started and not stopped, by the volume that they fill in."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.at_work: list[object] = []
        start, stop = Hydrator.start, Hydrator.stop

        def started(one: Hydrator) -> None:
            self.at_work.append(one._volume)
            start(one)

        def stopped(one: Hydrator) -> None:
            stop(one)
            self.at_work.remove(one._volume)

        patch.setattr(Hydrator, "start", started)
        patch.setattr(Hydrator, "stop", stopped)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def test_a_volume_that_is_asked_for_twice_at_once_has_one_hydrator(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a start looks through the volumes while an order that has just taken one back does, too."""
    held = dependent(site, "data")
    site.service.delete("data")
    held = site.service.directory.undelete("data")
    both, right = threading.Barrier(2), HeldVolume.missing.fget
    assert right is not None

    def missing(self: HeldVolume) -> int:
        # Whoever looks whether there is something to do has not done it yet.
        both.wait(PATIENCE)
        return right(self)

    held.update(pin="")
    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(HeldVolume, "missing", property(missing))
        for one in [pool.submit(site.service._fill_in, "data") for _ in range(2)]:
            one.result(PATIENCE)
    assert watched.at_work == [held.volume]
    site.service.delete("data")
    assert watched.at_work == []


def test_nothing_fills_in_a_volume_that_is_put_away(
    site: Site, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that had found the volume before it was deleted comes to it after that."""
    held = dependent(site, "data")
    assert watched.at_work == [held.volume]
    slow, right = Slow(), HeldVolume.missing.fget
    assert right is not None

    def missing(self: HeldVolume) -> int:
        if threading.current_thread() is not threading.main_thread():
            slow()
        return right(self)

    pin = held.record.pin
    held.update(pin="")
    with monkeypatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(HeldVolume, "missing", property(missing))
        # What works on it already would be found, and left alone.
        site.service._filling.end("data")
        late = pool.submit(site.service._fill_in, "data")
        assert slow.reached.wait(PATIENCE)
        site.service.delete("data")
        slow.go_on.set()
        late.result(PATIENCE)
    assert watched.at_work == []
    # And what it left keeps no later volume of that name from being filled in.
    held = site.service.undelete("data")
    held.update(pin=pin)
    assert watched.at_work == [held.volume]
    site.up()
    until(lambda: held.missing == 0 and not held.record.pin)
