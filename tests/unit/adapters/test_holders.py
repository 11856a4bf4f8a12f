"""Who has a block device, seen on loop devices of this machine."""

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
from safehold.adapters.linux.holders import Held, claimed, demand_free, device_number
from tests.mounts import loop_device

OPENS = "import sys; file = open(sys.argv[1], 'rb'); print('ready', flush=True); sys.stdin.read()"


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
    finally:
        ended(process)
    demand_free(device)


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


def test_a_mount(device: str, tmp_path: Path) -> None:
    subprocess.run(["mount", device, tmp_path], check=True)
    try:
        demand_free(device)
        with pytest.raises(Held, match="mounted on"), claimed(device):
            pass
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
    finally:
        ended(process)
    with claimed(device):
        pass


def test_swap(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "swap_places", lambda: iter([str(tmp_path / "image"), device]))
    with pytest.raises(Held, match=f"the kernel swaps to {device}"):
        demand_free(device)


def test_a_device_without_a_node(tmp_path: Path) -> None:
    with claimed(str(tmp_path / "none")):
        pass
