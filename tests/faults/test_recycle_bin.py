"""The recycle bin of volumes: damage and kills in it keep nobody from the rest of it, and are told of."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from safehold.app import recycling
from safehold.blocks import directory as directory_module
from safehold.blocks import recycle_bin
from safehold.blocks.held import HeldVolume
from safehold.compose.paths import Paths
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_service import Orders
from safehold.model.context import Context
from safehold.model.errors import FailedError, UsageError
from safehold.wire.control import ControlServer
from tests.sites import SIZE, Site, content, dependent, pins, until


def orders(site: Site) -> Orders:
    return Orders(site.service, lambda name: set(), lambda name: "", lambda: None)


def told(site: Site) -> Any:
    return orders(site).answer({"verb": "list"})["result"]


def binned(site: Site) -> list[str]:
    place = site.service.directory.bin.place
    return sorted(os.listdir(place)) if place.is_dir() else []


def damaged(site: Site, name: str) -> Path:
    """A volume in the bin whose record is gone, as a kill in the midst of its deletion left it."""
    site.service.create(name, SIZE, "vault")
    place = Path(site.service.delete(name))
    (place / "vol.json").unlink()
    return place


def no_room_for_records(patch: pytest.MonkeyPatch) -> None:
    right = HeldVolume.update

    def full(self: HeldVolume, **changes: object) -> None:
        if "deleted" in changes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        right(self, **changes)

    patch.setattr(HeldVolume, "update", full)


def test_one_that_was_deleted_and_is_taken_back_where_there_is_no_room(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown when that was, and goes on being filled in."""
    dependent(site, "kept")
    before = time.time()
    with monkeypatch.context() as patch:
        no_room_for_records(patch)
        site.service.delete("kept")
        assert before - 1 < told(site)["deleted"][0]["deleted"] < time.time() + 1
        held = site.service.undelete("kept")
    assert site.service.directory.get("kept") is held
    site.up()
    until(lambda: held.missing == 0)


def test_a_week_begins_with_the_last_deletion(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the record tells of an earlier one, and there is no room to say it anew."""
    held = site.service.create("kept", SIZE, "vault")
    held.update(deleted=time.time() - 30 * 86400)
    with monkeypatch.context() as patch:
        no_room_for_records(patch)
        site.service.delete("kept")
    site.service.empty_bin()
    assert [one["name"] for one in told(site)["deleted"]] == ["kept"]
    site.service.undelete("kept")


def test_a_week_does_not_begin_again_where_a_point_cannot_be_let_go_of(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was tried in vain is tried again in an hour, and of two of one name the last is the last."""
    dependent(site, "kept")
    site.service.delete("kept")
    deleted = site.service.directory.bin.entries()[0].when
    later = site.service.create("kept", SIZE, "vault")
    site.write(later, 3)
    time.sleep(0.05)
    site.service.delete("kept")
    monkeypatch.setattr(recycling, "RECYCLE", 0.03)
    site.down("put"), site.down("list"), site.down("read")
    with monkeypatch.context() as patch:
        patch.setattr(recycling, "RECYCLE", time.time() - deleted - 0.03)
        site.service.empty_bin()
    assert sorted(one.when for one in site.service.directory.bin.entries())[0] == pytest.approx(deleted, abs=0.02)
    assert site.service.undelete("kept").record.uuid == later.record.uuid
    site.up()
    site.service.empty_bin()
    assert not site.service.directory.bin.entries()


def test_one_that_is_damaged_keeps_nobody_from_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = site.service.create("kept", SIZE, "vault")
    site.write(held)
    was = content(held)
    site.service.delete("kept")
    place = damaged(site, "broken")
    listed = {one["name"]: one["problem"] for one in told(site)["deleted"]}
    assert listed.keys() == {"kept", "broken"}
    assert listed["kept"] == ""
    assert "record of a volume cannot be read" in listed["broken"]
    assert content(site.service.undelete("kept")) == was
    site.service.delete("kept")
    monkeypatch.setattr(recycling, "RECYCLE", -1.0)
    site.service.empty_bin()
    assert binned(site) == [place.name], "what cannot be read may be anything, and goes when somebody says so"


def test_status_says_how_to_get_rid_of_what_is_damaged(site: Site) -> None:
    place = damaged(site, "broken")
    paths = Paths(*(site.root / name for name in ("config", "state", "cache", "run")))
    paths.volume_control.parent.mkdir(parents=True)
    server = ControlServer(paths.volume_control, orders(site).answer, lambda error: None)
    try:
        (problem,) = VolumeClient(paths, {}, Context()).problems()
    finally:
        server.close()
    assert problem.startswith("volume broken in the recycle bin is damaged")
    assert problem.endswith(f"safehold volume delete {place.name} --for-good")
    # Another volume of its name is not what that is about.
    site.service.create("broken", SIZE, "vault")
    site.service.delete_for_good(place.name)
    assert binned(site) == []
    assert site.service.directory.names() == ["broken"]


def test_a_kill_while_one_is_deleted_for_good_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    dependent(site, "data")
    site.up()

    def killed(place: Path) -> None:
        (place / "vol.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recycle_bin.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            site.service.delete_for_good("data")
    assert told(site)["deleted"] == []
    with pytest.raises(UsageError, match="no such volume in the recycle bin"):
        site.service.undelete("data")
    assert pins(site) == []
    site.restart()
    until(lambda: binned(site) == [])


def test_a_kill_before_its_point_is_let_go_of_is_made_up_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    dependent(site, "data")
    site.service.delete("data")
    site.service.directory.bin.expel(site.service.directory.bin.entries()[0])
    site.down("delete", "pins/")
    site.restart()
    site.service.empty_bin()
    assert len(pins(site)) == len(binned(site)) == 1
    site.up()
    site.service.empty_bin()
    assert pins(site) == binned(site) == []


def test_what_cannot_be_removed_keeps_nobody_from_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        site.service.create(name, SIZE, "vault")
        site.service.delete(name)
    monkeypatch.setattr(recycling, "RECYCLE", -1.0)
    right = shutil.rmtree

    def stuck(place: Path) -> None:
        if "one" in place.name:
            raise OSError(5, "Input/output error")
        right(place)

    with monkeypatch.context() as patch:
        patch.setattr(recycle_bin.shutil, "rmtree", stuck)
        site.service.empty_bin()
    assert [name[:5] for name in binned(site)] == [".one."]
    site.service.empty_bin()
    assert binned(site) == []


def broken(site: Site, name: str, damage: str) -> None:
    """A volume that could not be opened at start: its log is damaged, or its record."""
    files = site.service.directory.get(name).files
    site.service.stop()
    files.checkpoint.write_bytes(b"rubbish")
    files.states.unlink()
    if damage == "vol.json":
        files.record.write_bytes(b"rubbish")
    site.service = site.begin()
    assert list(site.service.directory.broken) == [name]


@pytest.mark.parametrize("damage", ["ckpt.log", "vol.json"])
def test_a_volume_that_cannot_be_opened_can_be_deleted(site: Site, damage: str) -> None:
    site.service.create("data", SIZE, "vault")
    broken(site, "data", damage)
    site.service.delete("data")
    assert site.service.directory.broken == {}
    assert [one["name"] for one in told(site)["deleted"]] == ["data"]
    site.service.empty_bin()
    assert len(binned(site)) == 1, "it can be taken back for a week"
    site.service.create("data", SIZE, "vault")
    with pytest.raises(UsageError, match="there is a volume of that name"):
        site.service.undelete("data")
    site.service.delete_for_good("data")
    with pytest.raises(FailedError, match="is out of the recycle bin, and"):
        site.service.undelete("data")
    assert list(told(site)["broken"]) == ["data"]
    site.service.delete_for_good("data")
    assert binned(site) == []
    assert not site.service.directory.has("data")


def test_the_point_of_a_volume_that_cannot_be_opened_is_let_go_of(site: Site) -> None:
    dependent(site, "data")
    broken(site, "data", "ckpt.log")
    site.up()
    (gone,) = site.service.delete_for_good("data")
    assert gone.record is not None
    assert pins(site) == binned(site) == []


def test_whose_point_may_stay_pinned_is_told(site: Site) -> None:
    dependent(site, "data")
    broken(site, "data", "vol.json")
    site.up()
    (gone,) = orders(site).answer({"verb": "delete-for-good", "name": "data"})["result"]  # type: ignore[misc,attr-defined]
    assert "record of a volume cannot be read" in gone["problem"]
    assert len(pins(site)) == 1


def test_a_volume_that_is_broken_for_want_of_room_gives_its_own_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.service.create("data", SIZE, "vault")
    broken(site, "data", "ckpt.log")

    def full(files: object, record: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory_module, "write_record", full)
    site.service.delete("data")
    site.service.empty_bin()
    assert len(binned(site)) == 1
