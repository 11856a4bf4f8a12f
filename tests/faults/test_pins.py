"""Points that are kept for volumes: nothing that fails or is killed keeps one for ever, and an operator can end what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.app.expire import plan_single
from safehold.app.host import Host
from safehold.app.pins import Kept, kept_for, unpin
from safehold.blocks import directory as directory_module
from safehold.blocks import opening
from safehold.blocks.inventory import find_volumes
from safehold.blocks.layout import VolumeFiles, read_record
from safehold.model.errors import FailedError, UsageError
from safehold.vault.records import NoteBody
from tests.faults.test_recycle_bin import binned, told
from tests.sites import Site, dependent, pins, until

HERE = Host("here", "here", "boot")


def left(site: Site) -> list[str]:
    """What lies among the volumes beside those that are served."""
    root = site.service.directory.root
    return sorted(one.name for one in root.iterdir() if one.name.startswith("."))


class Killed(BaseException):
    """The service is gone from here on."""


def killed_in_the_making(site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """The service is killed while it makes a volume of a point; gives the point."""
    origin, _ = site.made()

    def kill(*_: object) -> None:
        (pin,) = pins(site)
        (making,) = left(site)
        assert read_record(VolumeFiles(site.service.directory.root / making)).pin == pin, "known here before it is made"
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(opening.CheckpointLog, "write_new", kill)
        # Whoever is killed tidies nothing up.
        patch.setattr(directory_module.RecycleBin, "cast_out", lambda *_: None)
        patch.setattr(type(site.service._recycling), "finish", lambda self: None)
        with pytest.raises(Killed):
            site.service.create("data", 0, "vault", origin)
    assert len(pins(site)) == len(left(site)) == 1
    return origin


def test_a_kill_while_a_volume_is_made_leaves_no_pin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = killed_in_the_making(site, monkeypatch)
    site.down("delete", "pins/")
    site.restart()
    until(lambda: told(site)["waiting"] == ["data"])
    assert len(pins(site)) == 1
    site.up()
    site.service.empty_bin()
    assert told(site)["waiting"] == pins(site) == binned(site) == left(site) == []
    site.service.create("data", 0, "vault", origin)


def test_a_volume_that_cannot_be_made_leaves_no_pin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    origin, _ = site.made()
    site.down("delete", "pins/")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(opening.CheckpointLog, "write_new", full)
        with pytest.raises(FailedError, match="cannot be made"):
            site.service.create("data", 0, "vault", origin)
    assert len(pins(site)) == len(binned(site)) == 1
    assert left(site) == []
    site.up()
    # Another of its name is not what that pin is about.
    site.down("read", "packs/")
    site.service.create("data", 0, "vault", origin)
    site.service.empty_bin()
    assert pins(site) == [site.service.directory.get("data").record.pin]


def test_what_lies_in_its_place_already_stays(site: Site) -> None:
    origin, _ = site.made()
    place = site.service.directory.root / "data"
    place.mkdir()
    (place / "mine").write_text("mine")
    with pytest.raises(FailedError, match="is there already"):
        site.service.create("data", 0, "vault", origin)
    assert (place / "mine").read_text() == "mine"
    assert pins(site) == []


def kept(site: Site, selector: str, *, volume: str = "", host: str = "") -> Kept:
    return kept_for(site.world.open(), selector, volume, host, find_volumes(site.service.directory.root), HERE)


def test_the_point_of_a_lost_host_can_be_let_go_of(site: Site) -> None:
    origin, _ = site.made()
    vault = site.world.open()
    point = vault.points()[0][0]
    for host, volume in (("lost", "db"), ("lost", "web"), ("other", "db")):
        vault.expiry().pin(point.wid, point.sid, NoteBody("volume", 0.0, {"volume": volume, "host": host}))
    with pytest.raises(UsageError, match="is filled in from this point") as refused:
        plan_single(site.world.open(), [origin])
    assert f"safehold point unpin @{point.id[:8]}" in refused.value.remedy
    found = kept(site, f"@{point.id[:8]}", host="lost", volume="db")
    assert [str(one) for one in found.dependents] == ["the volume db on lost"]
    unpin(site.world.open(), found)
    assert len(pins(site)) == 2
    unpin(site.world.open(), kept(site, origin))
    assert pins(site) == []
    plan_single(site.world.open(), [origin])
    with pytest.raises(UsageError, match="nothing of that kind"):
        kept(site, origin)


def test_a_volume_of_this_host_that_needs_the_point_keeps_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    held = dependent(site, "data")
    origin, files = held.record.origin, held.files
    with pytest.raises(UsageError, match="the volume data of this host still needs this point") as refused:
        kept(site, origin)
    assert "safehold volume delete data --for-good" in refused.value.remedy
    entry = Path(site.service.delete("data"))
    with pytest.raises(UsageError, match="in the recycle bin still needs this point") as refused:
        kept(site, origin)
    assert f"safehold volume delete {entry.name} --for-good" in refused.value.remedy
    site.service.undelete("data")
    site.service.stop()
    files.record.write_bytes(b"rubbish")
    site.service = site.begin()
    with pytest.raises(UsageError, match="cannot be read, and may still need this point"):
        kept(site, origin)
    site.service.delete_for_good("data")
    unpin(site.world.open(), kept(site, origin))
    assert pins(site) == []


def test_a_volume_that_is_being_made_keeps_its_point(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = killed_in_the_making(site, monkeypatch)
    with pytest.raises(UsageError, match="the volume data of this host, which is being made or was, still needs"):
        kept(site, origin)


def test_what_cannot_be_put_away_at_start_keeps_nothing_from_being_served(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = killed_in_the_making(site, monkeypatch)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(directory_module.RecycleBin, "cast_out", read_only)
        site.restart()
    assert site.service.directory.names() == ["first"]
    # What lies in the way of another one of its name is put away by the attempt.
    with pytest.raises(FailedError, match="cannot be made"):
        site.service.create("data", 0, "vault", origin)
    site.service.create("data", 0, "vault", origin)
