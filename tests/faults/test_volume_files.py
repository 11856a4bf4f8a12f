"""The files of a volume where the machine goes down between one change of them and the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safehold.blocks import growing, opening
from safehold.blocks.epochs import seal_together
from safehold.blocks.growing import grow_volume
from safehold.blocks.layout import VolumeFiles, VolumeRecord
from safehold.blocks.opening import close_volume, create_volume, open_volume

BLOCK = 64 * 1024
RECORD = VolumeRecord("v", "v", 4 * BLOCK, BLOCK, "vault", 0.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create_volume(tmp_path / "v", RECORD, (), ())
    return tmp_path / "v"


def test_a_larger_volume_has_its_length_before_its_record(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power loss a map that is shorter than the record says is made anew from a log that knows nothing of the new blocks."""
    opened = open_volume(directory, RECORD, "boot", lambda text: None)
    seal_together([opened.epochs], [opened.epochs.prepare()])
    close_volume(opened.volume, opened.epochs)
    durable: dict[str, int] = {}

    def watch(name: str) -> None:
        right = getattr(os, name)

        def sync(descriptor: int) -> None:
            right(descriptor)
            durable[Path(os.readlink(f"/proc/self/fd/{descriptor}")).name] = os.fstat(descriptor).st_size

        monkeypatch.setattr(os, name, sync)

    watch("fsync")
    watch("fdatasync")
    lengths: list[dict[str, int]] = []

    def write_record(files: VolumeFiles, record: VolumeRecord) -> None:
        lengths.append({path.name: path.stat().st_size for path in files.directory.iterdir()})

    monkeypatch.setattr(growing, "write_record", write_record)
    before = {path.name: path.stat().st_size for path in directory.iterdir()}
    grow_volume(VolumeFiles(directory), RECORD, 64 * BLOCK)
    grown = {name: length for name, length in lengths[0].items() if length != before[name]}
    assert {"data", "sectors", "states", "ov.2", "ov.2.map", "dirty.1", "dirty.2"} <= set(grown)
    assert {name: durable.get(name) for name in grown} == grown


@pytest.mark.parametrize("boot", ["boot", "later boot"])
def test_a_kill_while_an_overlay_is_deleted_leaves_nothing_behind(
    directory: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    """Killed between the deletion of an overlay and that of its map."""
    opened = open_volume(directory, RECORD, "boot", lambda text: None)
    seal_together([opened.epochs], [opened.epochs.prepare()])
    opened.volume.write(0, memoryview(b"\7" * 4096))
    right = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.name == "ov.2.map":
            raise OSError("killed here")
        right(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        opened.epochs.drop(1)
        with pytest.raises(OSError, match="killed here"):
            opened.epochs.fold()
    assert [path.name for path in directory.glob("ov.*")] == ["ov.2.map"]
    again = open_volume(directory, RECORD, boot, lambda text: None)
    assert bool(again.suspect) == (boot != "boot")
    assert "ov.2.map" not in {path.name for path in directory.glob("ov.*")}
    content = bytearray(4096)
    again.volume.read_into(0, memoryview(content))
    assert content == b"\7" * 4096


def test_names_are_durable_before_the_maps_are_to_be_believed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay that came back with a power loss would lie over what was written since it was folded."""
    opened = open_volume(directory, RECORD, "boot", lambda text: None)
    seal_together([opened.epochs], [opened.epochs.prepare()])
    opened.volume.write(0, memoryview(b"\7" * 4096))
    opened.epochs.drop(1)
    opened.epochs.fold()
    there: list[set[str]] = []
    right = opening.sync_directory

    def sync_directory(path: Path) -> None:
        right(path)
        there.append({one.name for one in path.iterdir()})

    monkeypatch.setattr(opening, "sync_directory", sync_directory)
    put_away = opened.epochs.header.put_away

    def checked() -> None:
        assert there == [{path.name for path in directory.iterdir()}]
        put_away()

    monkeypatch.setattr(opened.epochs.header, "put_away", checked)
    close_volume(opened.volume, opened.epochs)
    assert there
