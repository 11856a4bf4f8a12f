"""Who has a disk, seen on loop devices of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.linux import holders
from safehold.adapters.linux.holders import (
    Held,
    Holder,
    claimed,
    demand_free,
    device_holders,
    device_number,
    file_holders,
)
from tests.mounts import loop_device, mounted

OPENS = "import sys; file = open(sys.argv[1], 'rb'); print('ready', flush=True); sys.stdin.read()"
CAN_WRITE = OPENS.replace("'rb'", "'r+b'")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(holders, "_BRIEFLY", 0.5)
    with (tmp_path / "image").open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "image"], check=True)
    with loop_device(tmp_path / "image") as name:
        yield name


def started(*command: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    with process:
        assert process.stdin is not None
        process.stdin.close()


def test_a_device_that_nobody_has_is_nobodys_else_meanwhile(device: str, tmp_path: Path) -> None:
    info = os.stat(device)
    assert device_number(device) == f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    assert device_number("/dev/none") == ""
    demand_free(device)
    assert device_holders(device) == []
    with claimed(device):
        done = subprocess.run(["mount", device, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode
    with claimed(device):
        pass


def test_a_program_that_has_it_open(device: str) -> None:
    process = started(sys.executable, "-c", OPENS, device)
    try:
        with pytest.raises(Held, match=rf"process {process.pid} \(python.*\) has it open"):
            demand_free(device)
        assert device_holders(device) == [], "what is on it stays as it is"
    finally:
        ended(process)
    demand_free(device)


def test_a_program_that_can_write_to_it(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = started(sys.executable, "-c", CAN_WRITE, device)
    try:
        (holder,) = device_holders(device)
        assert holder.who.startswith(f"process {process.pid} (python")
        assert holder.who.endswith(") has it open")
        assert holder.writes
        # As the kernel's nbd shows who it gets its blocks from.
        shown = tmp_path / "class" / Path(device).name
        shown.mkdir(parents=True)
        (shown / "dev").write_text(device_number(device))
        (shown / "pid").write_text(f"{process.pid}\n")
        monkeypatch.setattr(holders, "_CLASS", shown.parent)
        assert device_holders(device) == []
        with pytest.raises(Held, match="has it open"):
            demand_free(device)
    finally:
        ended(process)


def test_a_program_that_can_write_to_a_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    for program, seen in ((OPENS, False), (CAN_WRITE, True)):
        process = started(sys.executable, "-c", program, image)
        try:
            assert [holder.writes for holder in file_holders(str(image))] == [True] * seen
        finally:
            ended(process)
    assert file_holders(str(image)) == []


def test_a_loop_device_on_a_file(device: str, tmp_path: Path) -> None:
    image, place = str(tmp_path / "image"), tmp_path / "on"
    place.mkdir()
    assert file_holders(image) == [Holder(f"{device} lies on it", True)]
    for options, words, writes in (("rw", "", True), ("ro,noload", " (read-only)", False)):
        subprocess.run(["mount", "-o", options, device, place], check=True)
        try:
            assert file_holders(image) == [Holder(f"{device}, mounted on {place}{words}", writes)]
        finally:
            subprocess.run(["umount", place], check=True)
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        assert file_holders(image) == [], "nobody uses it, and nobody can write by it"
    finally:
        # It would outlast what the device lies on.
        subprocess.run(["blockdev", "--setrw", device], check=True)


def test_one_that_only_looks_is_waited_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_BRIEFLY", 20.0)
    process = started(sys.executable, "-c", OPENS, device)
    looking = threading.Thread(target=lambda: (time.sleep(0.3), ended(process)))
    looking.start()
    demand_free(device)
    looking.join()


def test_another_device_on_it(device: str) -> None:
    with loop_device(Path(device)) as upper, pytest.raises(Held, match=f"{upper} lies on it"):
        demand_free(device)
    with loop_device(Path(device)) as upper:
        assert device_holders(device) == [Holder(f"{upper} lies on it", True)]


def test_what_the_kernel_has_made_upon_it(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "class" / Path(device).name
    (shown / "holders" / "dm-3" / "dm").mkdir(parents=True)
    (shown / "holders" / "dm-3" / "dm" / "name").write_text("vg-data\n")
    (shown / "holders" / "md0").mkdir()
    (shown / "dev").write_text(device_number(device))
    monkeypatch.setattr(holders, "_CLASS", shown.parent)
    lies = [f"/dev/mapper/vg-data lies on {Path(device).name}", f"/dev/md0 lies on {Path(device).name}"]
    assert device_holders(device) == [Holder(who, True) for who in lies]
    with pytest.raises(Held, match="; ".join(lies)):
        demand_free(device)


def test_a_partition_of_it(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has that has the disk. Loop devices of some kernels have none: another one stands for it."""
    with (tmp_path / "whole").open("wb") as file:
        file.truncate(16 << 20)
    with loop_device(tmp_path / "whole") as disk:
        shown = tmp_path / "class" / Path(disk).name
        (shown / Path(device).name).mkdir(parents=True)
        (shown / Path(device).name / "partition").write_text("1\n")
        (shown / "dev").write_text(device_number(disk))
        (shown.parent / Path(device).name).mkdir()
        (shown.parent / Path(device).name / "dev").write_text(device_number(device))
        monkeypatch.setattr(holders, "_CLASS", shown.parent)
        process = started(sys.executable, "-c", CAN_WRITE, device)
        try:
            assert [holder.writes for holder in device_holders(disk)] == [True]
            with pytest.raises(Held, match=f"process {process.pid} "):
                demand_free(disk)
        finally:
            ended(process)


def test_a_mount(device: str, tmp_path: Path) -> None:
    subprocess.run(["mount", device, tmp_path], check=True)
    try:
        demand_free(device)
        with pytest.raises(Held, match=f"in use: mounted on {tmp_path}"), claimed(device):
            pass
        assert device_holders(device) == [Holder(f"mounted on {tmp_path}", True)]
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        assert device_holders(device) == [Holder(f"mounted on {tmp_path} (read-only)", False)]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_mount_that_only_another_namespace_has(device: str, tmp_path: Path) -> None:
    place = tmp_path / "on"
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    process = started("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; cat")
    try:
        subprocess.run(["umount", place], check=True)
        with pytest.raises(Held, match=rf"process {process.pid} \(\w+\) sees it mounted on {place}"), claimed(device):
            pass
        (holder,) = device_holders(device)
        assert holder.who.endswith(f"sees it mounted on {place}, in another namespace")
        assert holder.writes
    finally:
        ended(process)
    with claimed(device):
        pass


def test_each_device_of_btrfs(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "btrfs") as where:
        with (tmp_path / "more").open("wb") as file:
            file.truncate(128 << 20)
        with loop_device(tmp_path / "more") as second:
            subprocess.run(["btrfs", "device", "add", "-f", second, where], check=True, capture_output=True)
            try:
                assert device_holders(second) == [Holder(f"mounted on {where}", True)]
            finally:
                subprocess.run(["btrfs", "device", "remove", second, where], check=True, capture_output=True)
            assert device_holders(second) == []


def test_swap(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "swap_places", lambda: iter([str(tmp_path / "image"), device]))
    with pytest.raises(Held, match=f"the kernel swaps to {device}"):
        demand_free(device)
    assert device_holders(device) == [Holder(f"the kernel swaps to {device}", True)]


def test_a_device_without_a_node(tmp_path: Path) -> None:
    with claimed(str(tmp_path / "none")):
        pass
