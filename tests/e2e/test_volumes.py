"""Live volumes through the shipped program, judged by fio, fsck, cmp, diff and qemu-img."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safehold.wire.control import ask
from tests.contents import equal
from tests.e2e.hosts import Host, run
from tests.nbd import Writer

MIB = 1 << 20


def test_without_root_through_nbd(host: Host, tmp_path: Path) -> None:
    """qemu-img writes and reads; each generation comes back bit for bit; equal to what a plain restore gives."""
    first = tmp_path / "first.img"
    first.write_bytes(random.Random(1).randbytes(5 * MIB) + bytes(3 * MIB) + random.Random(2).randbytes(MIB))
    host.program.run("volume", "create", "data", "--size", "9M")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", first, host.nbd("data"))
    one = host.program.json("volume", "snapshot", "data", "--wait")
    second = tmp_path / "second.img"
    shutil.copy(first, second)
    with second.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"changed" * 1000)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", second, host.nbd("data"))
    two = host.program.json("volume", "snapshot", "data", "--wait")
    assert two["stored"] < 2 * 512 * 1024

    for made, image in ((one, first), (two, second)):
        plain = tmp_path / f"{made['point']}.img"
        host.program.run("restore", f"data@{made['point']}", "--to", plain)
        run("cmp", plain, image)
        name = f"v{made['point'][:6]}"
        host.program.run("restore", f"data@{made['point']}", "--to", f"volume:{name}")
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, host.nbd(name))
        host.wait_until_here(name)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, host.nbd(name))
    assert host.program.json("verify", "--data")["ok"]
    ranges = host.program.json("volume", "changed", f"data@{one['point']}", f"data@{two['point']}")["ranges"]
    assert ranges == [[2 * MIB, 2 * MIB + 512 * 1024]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to mount something on."""
    made = tmp_path / "mnt"
    made.mkdir()
    return made


def device(host: Host, name: str) -> str:
    return str(host.program.json("volume", "attach", name)["device"])


def test_a_disk_that_is_lost_comes_back_on_a_file_system(host: Host, place: Path) -> None:
    host.program.run("volume", "create", "data", "--size", "128M")
    disk = device(host, "data")
    run("mkfs.ext4", "-q", disk)
    run("mount", disk, place)
    shutil.copytree("/usr/share/doc/base-files", place / "doc")
    run("sync", "-f", place)
    host.program.run("volume", "snapshot", "data", "--wait")
    shutil.rmtree(place / "doc")
    run("umount", place)
    run("wipefs", "-a", disk)
    host.program.run("volume", "detach", "data")

    host.program.run("restore", "data@latest", "--to", "volume:data2")
    host.program.run("volume", "attach", "data2", "--mount", place)
    run("diff", "-r", "/usr/share/doc/base-files", place / "doc")
    host.program.run("volume", "delete", "data2", "--yes", code=2)
    host.program.run("volume", "detach", "data2")
    host.wait_until_here("data2")
    disk = device(host, "data2")
    run("e2fsck", "-fn", disk)
    host.program.run("volume", "detach", "data2")
    host.program.run("volume", "delete", "data2", "--yes")
    host.program.run("volume", "delete", "data2", "--undo", "--dry-run", code=2)
    assert "data2" not in [one["name"] for one in host.program.json("volume", "list")["volumes"]]
    host.program.run("volume", "delete", "data2", "--undo")


def test_switch_and_the_way_back(host: Host, place: Path) -> None:
    mounted(host, "data", place, "64M", "--options", "noatime")
    (place / "which").write_text("old")
    host.program.run("volume", "snapshot", "data", "--wait")
    run("sync", "-f", place)
    host.program.run("volume", "snapshot", "data", "--wait")
    (place / "which").write_text("newer")
    host.program.run("restore", "data@latest", "--to", "volume:data2")
    with open(json.loads((host.home / "run/attached/data.json").read_text())["device"], "rb"):
        for command in (["switch", "data", "--to", "data2", "--yes"], ["detach", "data"]):
            assert f"process {os.getpid()} (" in host.program.run("volume", *command, code=1).stderr
    assert (place / "which").read_text() == "newer"
    told = host.program.run("volume", "switch", "data", "--to", "data2", "--yes").stdout
    assert "OUTAGE" in told
    assert (place / "which").read_text() == "old"
    assert "noatime" in run("findmnt", "-n", "-o", "OPTIONS", place)
    host.program.run("volume", "switch", "data", "--to", "data2", "--back", "--yes")
    assert (place / "which").read_text() == "newer"
    # One that was killed when it had unmounted, and nothing of that was on record.
    underway = {"old": "data", "new": "data2", "mount": str(place), "options": "noatime"}
    (host.home / "run/switch").write_text(json.dumps(underway))
    run("umount", place)
    host.program.run("volume", "switch", "data", "--to", "data2", "--back", "--yes")
    assert (place / "which").read_text() == "newer"


def mounted(host: Host, name: str, place: Path, size: str, *more: str) -> None:
    """A volume with a file system, attached and mounted."""
    host.program.run("volume", "create", name, "--size", size)
    run("mkfs.ext4", "-q", device(host, name))
    host.program.run("volume", "detach", name)
    host.program.run("volume", "attach", name, "--mount", place, *more)


def formatted(host: Host, name: str, place: Path) -> None:
    """A volume with a file system that holds its name, not attached."""
    host.program.run("volume", "create", name, "--size", "64M")
    disk = device(host, name)
    run("mkfs.ext4", "-q", disk)
    run("mount", disk, place)
    (place / "which").write_text(name)
    run("umount", place)
    host.program.run("volume", "detach", name)


def test_one_switch_at_a_time(host: Host, place: Path) -> None:
    for name in ("data", "data2"):
        formatted(host, name, place)
    host.program.run("volume", "attach", "data", "--mount", place)
    switch = ["volume", "switch", "data", "--to", "data2", "--yes"]
    record = host.home / "run/switch"
    with host.program.start(*switch) as first:
        while not record.exists():
            assert first.poll() is None
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        try:
            second = host.program.run(*switch, code=1)
        finally:
            first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=120) == 0
    assert "the switch of data to data2 is at work" in second.stderr
    assert second.stdout == "", "no outage is announced that does not come"
    assert (place / "which").read_text() == "data2"
    assert len(run("findmnt", "-n", "-o", "SOURCE", "--mountpoint", place).split()) == 1
    assert not record.exists()


def test_what_is_mounted_over_a_volume_is_left_alone(host: Host, tmp_path: Path, place: Path) -> None:
    for name in ("data", "data2"):
        formatted(host, name, place)
    link = tmp_path / "link"
    link.symlink_to(place)
    disk = host.program.json("volume", "attach", "data", "--mount", link)["device"]
    refused = host.program.run("volume", "attach", "data2", "--mount", place, code=2).stderr
    assert f"{disk} (ext4) is mounted there already: {place}" in refused
    assert "data2" not in [path.stem for path in (host.home / "run/attached").glob("*.json")]
    run("mount", device(host, "data2"), place)
    for command in (["detach", "data"], ["switch", "data", "--to", "other", "--yes"]):
        if command[0] == "switch":
            host.program.run("volume", "create", "other", "--size", "64M")
        said = host.program.run("volume", *command, code=1)
        assert f"is mounted over {disk} on {place}" in said.stderr
        assert "OUTAGE" not in said.stdout
        assert (place / "which").read_text() == "data2"
    run("umount", place)
    assert (place / "which").read_text() == "data"
    host.program.run("volume", "detach", "data")
    assert not place.is_mount()


def test_who_keeps_a_volume_mounted_is_named(host: Host, place: Path) -> None:
    for name in ("data", "data2"):
        formatted(host, name, place)
    host.program.run("volume", "attach", "data", "--mount", place)
    with (place / "which").open():
        for command in (["switch", "data", "--to", "data2", "--yes"], ["detach", "data"]):
            said = host.program.run("volume", *command, code=1).stderr
            assert f"process {os.getpid()} (" in said
            assert f"has {place}/which open: " in said
    with subprocess.Popen(["sleep", "1000"], cwd=place) as sleeper:
        said = host.program.run("volume", "detach", "data", code=1).stderr
        sleeper.kill()
    assert f"process {sleeper.pid} (sleep) works in {place}" in said
    assert "nothing was changed" in said
    host.program.run("volume", "detach", "data")


@pytest.mark.parametrize("damage", [Path.unlink, lambda record: record.write_text("")], ids=["gone", "empty"])
def test_a_device_whose_record_is_lost_is_not_ended_under_its_file_system(
    host: Host, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    formatted(host, "data", place)
    disk = host.program.json("volume", "attach", "data", "--mount", place)["device"]
    damage(host.home / "run/attached/data.json")
    told = f"{disk}, mounted on {place}, is there of it, and nothing of that is on record"
    assert f"{told} → umount {place}, then safehold volume detach data" in host.program.run("status", code=1).stdout
    assert told in host.program.run("volume", "list").stdout
    assert f"is attached as {disk}" in host.program.run("volume", "delete", "data", "--yes", code=2).stderr
    assert f"mounted on {place}, and nothing" in host.program.run("volume", "attach", "data", code=2).stderr
    assert f"{disk} is mounted on {place}" in host.program.run("volume", "detach", "data", code=2).stderr
    (place / "written").write_text("goes on")
    run("sync", "-f", place)
    run("umount", place)
    with open(disk, "rb"):
        assert f"process {os.getpid()} (" in host.program.run("volume", "attach", "data", code=1).stderr
    host.program.run("volume", "detach", "data")
    assert str(host.home) not in run("losetup", "--noheadings", "--output", "BACK-FILE")
    assert host.program.json("status")["problems"] == []
    host.program.run("volume", "attach", "data", "--mount", place)
    assert (place / "written").read_text() == "goes on"
    host.program.run("volume", "detach", "data")


def test_what_is_left_of_a_device_is_told_and_let_go_of(host: Host) -> None:
    """A daemon without a device is a client that nobody has on record; and a record without a device is nothing."""
    host.program.run("volume", "create", "data", "--size", "16M")
    disk = device(host, "data")
    (host.home / "run/attached/data.json").unlink()
    (host.home / "run/attached/data.pid").unlink()
    run("losetup", "--detach", disk)
    told = host.program.run("status", code=1).stdout
    assert "a storage daemon is there of it, and nothing of that is on record → safehold volume detach data" in told
    host.program.run("volume", "delete", "data", "--yes", code=2)
    assert "its storage daemon is gone" in host.program.run("volume", "detach", "data").stdout
    record = host.home / "run/attached/data.json"
    record.write_text("{")
    assert f"and there is none → remove {record}" in host.program.run("status", code=1).stdout
    record.unlink()
    assert host.program.json("status")["problems"] == []
    host.program.run("volume", "delete", "data", "--yes")


def test_a_switch_that_is_refused_announces_no_outage(host: Host, place: Path) -> None:
    for name in ("data", "data2"):
        formatted(host, name, place)
    host.program.run("volume", "attach", "data", "--mount", place)
    said = host.program.run("volume", "switch", "data", "--to", "data", "--yes", code=2)
    assert "a volume cannot take its own place: data" in said.stderr
    device(host, "data2")
    attached = host.program.run("volume", "switch", "data", "--to", "data2", "--yes", code=2)
    assert "is attached already" in attached.stderr
    host.program.run("volume", "detach", "data2")
    with open(json.loads((host.home / "run/attached/data.json").read_text())["device"], "rb"):
        held = host.program.run("volume", "switch", "data", "--to", "data2", "--yes", code=1)
    # What was cut short by a full disk, say, is no reason to forget the switch that it tells of.
    record = host.home / "run/switch"
    record.write_text("{")
    torn = host.program.run("volume", "switch", "data", "--to", "data2", "--yes", code=1)
    assert f"what it was about cannot be read: {record}" in torn.stderr
    assert str(record) in host.program.run("status", code=1).stdout
    assert [one.stdout for one in (said, attached, held, torn)] == ["", "", "", ""]
    assert (place / "which").read_text() == "data"
    record.unlink()
    host.program.run("volume", "switch", "data", "--to", "data2", "--yes")
    assert (place / "which").read_text() == "data2"


def test_a_switch_that_goes_on_and_fails_leaves_nothing_behind(host: Host, place: Path) -> None:
    """The new volume was attached when the first one was killed, and cannot be mounted."""
    for name in ("data", "data2"):
        host.program.run("volume", "create", name, "--size", "16M")
    run("mkfs.ext4", "-q", device(host, "data"))
    other = device(host, "data2")
    underway = {"old": "data", "new": "data2", "mount": str(place), "options": "noatime"}
    (host.home / "run/switch").write_text(json.dumps(underway))
    switch = ["volume", "switch", "data", "--to", "data2", "--yes"]
    with open(other, "r+b"):
        said = host.program.run(*switch, code=1).stderr
    assert f"data2 stays attached: the device is in use: process {os.getpid()} (" in said
    assert "data is in its place again" in said
    assert place.is_mount()
    assert "is under way" in host.program.run("status", code=1).stdout
    said = host.program.run(*switch, code=1).stderr
    assert "the switch did not come about" in said
    assert "data is in its place again" in said
    assert place.is_mount()
    assert [path.stem for path in (host.home / "run/attached").glob("*.json")] == ["data"]
    assert "is under way" not in host.program.run("status", code=None).stdout


def test_what_shows_no_device_of_its_own_is_unmounted_too(host: Host, tmp_path: Path) -> None:
    host.program.run("volume", "create", "data", "--size", "128M")
    host.program.run("volume", "attach", "data", "--mount", tmp_path, code=1)
    assert not list((host.home / "run/attached").glob("*.json")), "what cannot be mounted is not attached"
    run("mkfs.btrfs", "-q", device(host, "data"))
    host.program.run("volume", "detach", "data")
    disk = host.program.json("volume", "attach", "data", "--mount", tmp_path)["device"]
    assert run("findmnt", "-n", "-o", "SOURCE,FSTYPE", tmp_path).split() == [disk, "btrfs"]
    host.program.run("volume", "detach", "data")
    assert not tmp_path.is_mount()


def test_a_switch_that_is_killed_anywhere_can_be_finished_or_taken_back(host: Host, place: Path) -> None:
    """kill -9 of the command and of what it runs, at moments over all of its time."""
    for name in ("data", "data2"):
        formatted(host, name, place)
    host.program.run("volume", "attach", "data", "--mount", place, "--options", "noatime")
    there, other, half_done = "data", "data2", 0
    for moment in range(14):
        back = ["--to", other] if there == "data" else ["--to", there, "--back"]
        with host.program.start("volume", "switch", "data", *back, "--yes") as killed:
            while not (host.home / "run/switch").exists() and killed.poll() is None:
                time.sleep(0.005)
            time.sleep(moment * 0.05)
            killed.kill()
        said = host.program.run("status", code=None).stdout
        half_done += "is under way or was killed" in said
        if "is under way or was killed" in said and moment % 3 == 2:
            # Taken back instead.
            away = ["--to", "data2", "--back"] if there == "data" else ["--to", "data2"]
            host.program.run("volume", "switch", "data", *away, "--yes")
        elif (
            "is under way or was killed" not in said
            and (place / "which").exists()
            and (place / "which").read_text() == other
        ):
            there, other = other, there
        else:
            host.program.run("volume", "switch", "data", *back, "--yes")
            there, other = other, there
        assert (place / "which").read_text() == there
        assert "noatime" in run("findmnt", "-n", "-o", "OPTIONS", place)
        assert "is under way" not in host.program.run("status").stdout
        devices = run("losetup", "--noheadings", "--output", "BACK-FILE").split()
        assert [one for one in devices if str(host.home) in one] == [str(host.home / "run/attached" / f"{there}.disk")]
    assert half_done, "it was never killed half way"


def fio(place: Path, seconds: int) -> subprocess.Popen[str]:
    words = ["fio", "--name=w", f"--directory={place}", "--rw=randwrite", "--bs=4k", "--size=24M", "--ioengine=psync"]
    words += ["--verify=crc32c", "--verify_backlog=500", "--fsync=64", "--numjobs=2", "--group_reporting"]
    words += ["--time_based", f"--runtime={seconds}", "--output-format=json"]
    words += ["--verify_state_save=0"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_killed_service_is_not_noticed_on_the_file_system(host: Host, tmp_path: Path, place: Path) -> None:
    """kill -9 while a file system is written, once while a snapshot is on its way, and nine seconds without a service; fio checks what it wrote,
    and all of it is read again from the volume, past the page cache of before.
    """
    mounted(host, "data", place, "128M")
    writer = fio(place, 18)
    time.sleep(1.5)
    for snapshot, outage in ((False, 1.5), (True, 9.0)):
        if snapshot:
            host.program.run("volume", "snapshot", "data")
        os.kill(host.pid(), signal.SIGKILL)
        time.sleep(outage)
        host.program.run("volume", "list")
        time.sleep(1.5)
    told, _ = writer.communicate(timeout=120)
    assert writer.returncode == 0, told
    job = json.loads(told[told.index("{") :])["jobs"][0]
    assert job["error"] == 0
    assert job["write"]["total_ios"] > 100
    host.program.run("volume", "snapshot", "data", "--wait")
    snapshots = host.show("data")["snapshots"]
    assert [one["state"] for one in snapshots] == ["completed", "completed"]  # type: ignore[attr-defined, union-attr]
    sums = tmp_path / "sums"
    sums.write_text(run("sh", "-c", f"cd {place} && sha256sum w.*"))
    assert len(sums.read_text().splitlines()) == 2
    host.program.run("volume", "detach", "data")
    run("e2fsck", "-fn", device(host, "data"))
    host.program.run("volume", "detach", "data")
    host.program.run("volume", "attach", "data", "--mount", place)
    run("sh", "-c", f"cd {place} && sha256sum -c {sums}")
    host.program.run("volume", "detach", "data")


def test_a_service_stopped_in_order_is_not_noticed_by_a_busy_client(host: Host) -> None:
    """With 64 writes under way at each of several stops: qemu sends again what got no answer, and would pass on an error."""
    host.program.run("volume", "create", "data", "--size", "64M")
    target = f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={host.socket},file.export=data,file.reconnect-delay=30"
    words = ["qemu-img", "bench", "-w", "-c", "2000000", "-d", "64", "-s", "65536", "--image-opts", target]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as bench:
        try:
            for _ in range(8):
                time.sleep(0.3)
                assert bench.poll() is None, bench.stdout.read() if bench.stdout else ""
                host.program.run("volume", "stop")
                host.program.run("volume", "list")
            time.sleep(0.3)
            assert bench.poll() is None, bench.stdout.read() if bench.stdout else ""
        finally:
            bench.kill()


def test_kills_at_any_moment_lose_nothing_that_was_acknowledged(host: Host, tmp_path: Path) -> None:
    """SIGKILL during writes, seals, uploads, folds and hydration; each time everything acknowledged is there, and every
    snapshot completes as what it was.
    """
    rng = random.Random(5)
    size = 4 * MIB
    host.program.run("volume", "create", "data", "--size", "4M")
    model = bytearray(size)
    expected: dict[str, bytes] = {}
    for _ in range(12):
        writer = Writer(host.socket, "data")
        pid = host.pid()
        timer = threading.Timer(rng.random() * 0.25, os.kill, (pid, signal.SIGKILL))
        timer.start()
        unsure: tuple[int, bytes] | None = None
        with writer.connection, contextlib.suppress(ConnectionError, OSError):
            for _ in range(100_000):
                offset = rng.randrange(size // 4096) * 4096
                data = rng.randbytes(4096)
                unsure = (offset, data)
                writer.write(offset, data)
                model[offset : offset + 4096] = data
                if rng.random() < 0.02:
                    order = {"verb": "snapshot", "names": ["data"], "asked": {"data": "crash"}, "tags": {}}
                    with contextlib.suppress(Exception):
                        expected[ask(host.control, order, 5)["result"]["id"]] = bytes(model)
        timer.join()
        assert not Path(f"/proc/{pid}/exe").exists()
        host.program.run("volume", "list")
        image = tmp_path / "now.img"
        image.unlink(missing_ok=True)
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", host.nbd("data"), image)
        now = image.read_bytes()
        if now != model:
            assert unsure is not None
            offset, data = unsure
            model[offset : offset + 4096] = data
        equal(now, model)
    host.wait_until_sent("data")
    host.program.run("volume", "snapshot", "data", "--wait")
    seen = 0
    for one in host.show("data")["snapshots"]:  # type: ignore[attr-defined]
        assert one["state"] == "completed", one["snapshot_problem"]
        if one["id"] in expected:
            seen += 1
            image = tmp_path / f"{one['id']}.img"
            host.program.run("restore", f"data@{one['point']}", "--to", image)
            equal(image.read_bytes(), expected[one["id"]])
    assert seen > 5
    points = [one["point"] for one in host.show("data")["snapshots"]]  # type: ignore[attr-defined]
    assert len(points) == len(set(points)) == len(host.program.json("points")["points"])
    assert host.program.json("verify", "--data")["ok"]


def test_a_service_killed_when_the_vault_has_the_point_makes_no_second_one(host: Host, tmp_path: Path) -> None:
    host.program.run("volume", "create", "data", "--size", "4M")
    run("qemu-io", "-f", "raw", "-c", "write -P 5 0 2M", host.nbd("data"))
    host.program.run("volume", "snapshot", "data", "--wait")
    host.program.run("volume", "stop")
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(host.program.crash, r"points/\w+/\w+$", "after", tmp_path / "report", "volume", "serve")
        while not host.control.exists():
            time.sleep(0.05)
        run("qemu-io", "-f", "raw", "-c", "write -P 6 1M 1M", host.nbd("data"))
        host.program.run("volume", "snapshot", "data")
        assert killed.result().returncode == -signal.SIGKILL
    host.program.run("volume", "list")
    host.wait_until_sent("data")
    run("qemu-io", "-f", "raw", "-c", "write -P 7 3M 1M", host.nbd("data"))
    host.program.run("volume", "snapshot", "data", "--wait")
    assert len(host.program.json("points")["points"]) == 3
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", host.nbd("data"), tmp_path / "now.img")
    host.program.run("restore", "data@latest", "--to", tmp_path / "back.img")
    run("cmp", tmp_path / "now.img", tmp_path / "back.img")


def test_rubbish_orders(host: Host) -> None:
    program = host.program
    program.run("volume", "show", "nothing", code=2)
    program.run("volume", "create", "../x", "--size", "1M", code=2)
    program.run("volume", "create", "x", code=2)
    program.run("volume", "create", "x", "--size", "0", code=2)
    program.run("volume", "create", "x", "--from", "nothing@latest", code=2)
    program.run("volume", "create", "x", "--size", "1M")
    program.run("volume", "create", "x", "--size", "1M", code=1)
    program.run("volume", "snapshot", "x", "--require", "application", code=7)
    assert program.run("volume", "snapshot", "x", "--group", "x", "--group", "x").stdout.startswith("x: snapshot")
    program.run("volume", "detach", "x", code=2)
    program.run("volume", "resize", "x", "--size", "1K", code=2)
    program.run("volume", "delete", "x", code=2)
    program.run("volume", "serve", code=1)
    with socket.socket(socket.AF_UNIX) as rubbish:
        rubbish.connect(str(host.control))
        rubbish.sendall(b"\xff\x00{[" * 100 + b"\n")
        rubbish.settimeout(5)
        assert b"not a question" in rubbish.recv(1000)
    assert program.json("volume", "show", "x")["size"] == MIB
    program.run("volume", "stop")
    assert "no volume service" in program.run("volume", "stop").stdout


def test_a_frozen_file_system_needs_no_repair(host: Host, tmp_path: Path, place: Path) -> None:
    """Under load: without a freeze the journal has to be replayed, with one it is clean; the load goes on either way."""
    mounted(host, "data", place, "128M")
    writer = fio(place, 6)
    time.sleep(1)
    crash = host.program.json("volume", "snapshot", "data", "--wait")
    frozen = host.program.json("volume", "snapshot", "data", "--bracket", f"fsfreeze:{place}", "--wait")
    told, _ = writer.communicate(timeout=120)
    assert writer.returncode == 0, told
    assert (crash["achieved"], frozen["achieved"]) == ("crash", "filesystem")
    for made, dirty in ((crash, True), (frozen, False)):
        image = tmp_path / f"{made['point']}.img"
        host.program.run("restore", f"data@{made['point']}", "--to", image)
        assert ("needs_recovery" in run("dumpe2fs", "-h", image)) is dirty
    run("e2fsck", "-fn", image)
    shown = host.program.json("point", "show", f"data@{frozen['point']}")
    assert f"fsfreeze:{place}" in json.dumps(shown)


def test_a_bracket_that_fails_leaves_no_snapshot_and_no_freeze(host: Host, tmp_path: Path, place: Path) -> None:
    mounted(host, "data", place, "64M")
    hook = tmp_path / "hook.sh"
    hook.write_text("#!/bin/sh\n[ $1 = freeze ] && exit 3\nexit 0\n")
    hook.chmod(0o755)
    brackets = ["--bracket", f"fsfreeze:{place}", "--bracket", f"hook:{hook}"]
    host.program.run("volume", "snapshot", "data", *brackets, "--require", "filesystem", code=7)
    (place / "written").write_text("at once")
    run("sync", "-f", place)
    assert all(one["state"] != "completed" for one in host.show("data")["snapshots"])  # type: ignore[attr-defined]
    # What lies elsewhere vouches for nothing here, and the state directory is never frozen.
    host.program.run("volume", "snapshot", "data", "--bracket", f"fsfreeze:{tmp_path}", code=2)
    # A level that no bracket gives is not reached; nothing stays held.
    host.program.run("volume", "snapshot", "data", "--bracket", f"fsfreeze:{place}", "--require", "application", code=7)
    (place / "again").write_text("at once")
    run("sync", "-f", place)
    host.program.run("volume", "snapshot", "data", "--wait")


def test_brackets_that_cannot_be_are_refused_before_anything_is_held(host: Host, tmp_path: Path) -> None:
    place, seen = tmp_path / "mnt", tmp_path / "seen"
    place.mkdir()
    seen.mkdir()
    formatted(host, "data", place)
    host.program.run("volume", "attach", "data", "--mount", place)
    run("mount", "--bind", place, seen)
    try:
        run("mount", "-o", "remount,bind,ro", seen)
        for brackets, told in (
            ([f"fsfreeze:{place}", f"fsfreeze:{place}"], f"the bracket is given twice: fsfreeze:{place}"),
            ([f"readonly:{place}", f"readonly:{place}/"], "the bracket is given twice"),
            ([f"fsfreeze:{seen}", f"unmount:{place}"], f"the same file system as fsfreeze:{seen}: unmount:{place}"),
            ([f"readonly:{seen}"], "is mounted read-only there alone"),
        ):
            words = [word for bracket in brackets for word in ("--bracket", bracket)]
            assert told in host.program.run("volume", "snapshot", "data", *words, code=2).stderr
            (place / "written").write_text("at once")
    finally:
        run("umount", seen)
    assert host.show("data")["snapshots"] == []


def test_a_bracket_vouches_for_what_it_holds(host: Host, tmp_path: Path) -> None:
    """Two disks at one instant, each with a file system of its own."""
    places = {name: tmp_path / name for name in ("data", "log")}
    for name, place in places.items():
        place.mkdir()
        mounted(host, name, place, "64M")
        (place / "file").write_text("written")
    both = ["--group", "data", "--group", "log", "--bracket", f"fsfreeze:{places['data']}"]
    said = host.program.run("volume", "snapshot", *both, "--require", "filesystem", code=7).stderr
    assert f"filesystem asked for: what is mounted on {places['log']} is not held: log" in said
    assert host.show("data")["snapshots"] == host.show("log")["snapshots"] == []
    made = host.program.json("volume", "snapshot", *both, "--wait")
    assert (made["achieved"], made["levels"]) == ("crash", {"data": "filesystem", "log": "crash"})
    for name, clean in (("data", True), ("log", False)):
        host.program.run("restore", f"{name}@{made['point']}", "--to", tmp_path / f"{name}.img")
        assert ("needs_recovery" in run("dumpe2fs", "-h", tmp_path / f"{name}.img")) is not clean
    members = host.program.json("point", "show", f"log@{made['point']}")["members"]
    assert {one["name"]: bool(one["brackets"]) for one in members} == {"data": True, "log": False}
    more = ["--bracket", f"fsfreeze:{places['log']}", "--require", "filesystem", "--wait"]
    assert host.program.json("volume", "snapshot", *both, *more)["achieved"] == "filesystem"


def test_a_freeze_never_stops_the_vault_of_the_volumes_or_the_state(
    passphrase_host: Host, tmp_path: Path, place: Path
) -> None:
    """The vault that counts is the volume's own, whichever the command would take by itself; and what the service works in is none to freeze."""
    host = passphrase_host
    inside = place / "vault"
    mounted(host, "data", place, "64M")
    host.program.run("vault", "init", inside, "--kit-file", tmp_path / "kit.txt", SAFEHOLD_VAULT=str(inside))
    host.program.run("volume", "create", "other", "--size", "64M", "--vault", inside)
    freeze = ["--bracket", f"fsfreeze:{place}"]
    said = host.program.run("volume", "snapshot", "--group", "data", "--group", "other", *freeze, code=2).stderr
    assert f"the vault ({inside})" in said
    assert host.show("other")["vault"] == str(inside)
    # The same service, asked by a command that keeps its state on that file system.
    home = place / "home"
    (home / "state").mkdir(parents=True)
    (home / "run").symlink_to(host.home / "run")
    elsewhere = {"SAFEHOLD_HOME": str(home), "SAFEHOLD_VAULT": str(host.home / "vault")}
    assert "the state directory" in host.program.run("volume", "snapshot", "data", *freeze, code=2, **elsewhere).stderr
    host.program.run("volume", "snapshot", "data", *freeze, "--wait")


def test_past_the_limit_requests_fail_and_status_says_why(host: Host) -> None:
    """Nobody comes back within half a minute: the device gives errors instead of waiting for ever; afterwards it can be attached again."""
    host.program.run("volume", "create", "data", "--size", "16M")
    disk = device(host, "data")
    run("dd", "if=/dev/urandom", f"of={disk}", "bs=1M", "count=4", "oflag=direct", "conv=fsync")
    told = run("sh", "-c", f"head -c 4194304 {disk} | sha256sum")
    os.kill(host.pid(), signal.SIGKILL)
    # A write: what was read before may be in the page cache.
    waiting = subprocess.run(
        ["dd", "if=/dev/zero", f"of={disk}", "bs=4k", "count=1", "seek=2000", "oflag=direct", "conv=fsync,notrunc"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert waiting.returncode != 0
    assert "Input/output error" in waiting.stderr
    assert f"volume data is {disk}, and nobody serves it" in host.program.run("status", code=1).stdout
    assert f"nobody served {disk} for " in host.program.run("volume", "list").stdout
    (problem,) = host.program.json("status", code=1)["problems"]
    assert "some may have failed" in problem["what"]
    assert "safehold volume detach data" in problem["remedy"]
    assert problem["resources"] == ["data"]
    host.program.run("volume", "stop")
    host.program.run("volume", "list")
    assert host.program.json("status", code=1)["problems"] == [problem], "another service knows too"
    host.program.run("volume", "detach", "data")
    disk = device(host, "data")
    assert host.program.json("status")["problems"] == []
    assert run("sh", "-c", f"head -c 4194304 {disk} | sha256sum") == told


def test_what_is_attached_is_not_deleted_while_it_waits_for_the_service(host: Host, tmp_path: Path) -> None:
    """The storage daemon comes back seconds after the service: until then no client is there, and the volume is mounted all the same."""
    place = tmp_path / "a place"
    place.mkdir()
    mounted(host, "data", place, "16M")
    host.program.run("volume", "stop")
    time.sleep(4)
    host.program.run("volume", "list")
    assert "is attached as /dev/loop" in host.program.run("volume", "delete", "data", "--yes", code=2).stderr
    assert "is attached as" in host.program.run("volume", "resize", "data", "--size", "32M", code=2).stderr
    (place / "written").write_text("goes on")
    run("sync", "-f", place)
    host.program.run("volume", "detach", "data")
    host.program.run("volume", "delete", "data", "--yes")


def test_a_device_that_hangs_holds_up_nobody_else(host: Host, tmp_path: Path) -> None:
    """Backups look for who has a disk open. They do not ask a file system that does not answer: who does, waits in the kernel."""
    host.program.run("volume", "create", "data", "--size", "16M")
    device(host, "data")
    daemon = json.loads((host.home / "run/attached/data.json").read_text())["pid"]
    image = tmp_path / "other.img"
    image.write_bytes(b"other" * 10_000)
    os.kill(daemon, signal.SIGSTOP)
    try:
        # What the kernel knows of the export's file it believes for a second.
        time.sleep(1.5)
        # Who has it open is looked for where somebody has.
        with image.open("r+b"), host.program.start("backup", image, "--require", "none") as done:
            try:
                assert done.wait(timeout=60) == 0
            finally:
                os.kill(daemon, signal.SIGCONT)
    finally:
        os.kill(daemon, signal.SIGCONT)
    host.program.run("volume", "detach", "data")


def test_a_device_whose_daemon_was_killed_is_told_and_let_go_of(host: Host, place: Path) -> None:
    """Also while something is open on it; what was acknowledged is there when it is attached again."""
    host.program.run("volume", "create", "data", "--size", "16M")
    run("mkfs.ext4", "-q", device(host, "data"))
    host.program.run("volume", "detach", "data")
    disk = host.program.json("volume", "attach", "data", "--mount", place)["device"]
    (place / "written").write_text("before")
    run("sync", "-f", place)
    daemon = json.loads((host.home / "run/attached/data.json").read_text())["pid"]
    os.kill(daemon, signal.SIGKILL)
    # On a busy machine it takes its time to die.
    for _ in range(1000):
        if not Path(f"/proc/{daemon}/exe").exists():
            break
        time.sleep(0.02)
    with (place / "written").open():
        told = f"{disk} on {place} gives errors, for its storage daemon is gone"
        assert told in host.program.run("status", code=1).stdout
        assert told in host.program.run("volume", "list").stdout
        assert told in host.program.run("volume", "show", "data").stdout
        assert "storage daemon is gone" in host.program.run("volume", "attach", "data", code=2).stderr
        host.program.run("volume", "delete", "data", "--yes", code=2)
        host.program.run("volume", "detach", "data")
    assert not place.is_mount()
    assert "gives errors" not in host.program.run("status", code=None).stdout
    host.program.run("volume", "attach", "data", "--mount", place)
    assert (place / "written").read_text() == "before"
    host.program.run("volume", "detach", "data")
    devices = run("losetup", "--noheadings", "--output", "NAME,BACK-FILE")
    assert str(host.home) not in devices


def test_the_service_has_as_many_files_open_as_it_may(host: Host) -> None:
    """It is started where few may be, as by a login shell, and serves more volumes than that has room for."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    try:
        host.program.run("volume", "list")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for number in range(24):
        host.program.run("volume", "create", f"data{number}", "--size", "1M")
    assert len(os.listdir(f"/proc/{host.pid()}/fd")) > 128


def test_sizes_that_cannot_be(host: Host) -> None:
    host.program.run("volume", "create", "data", "--size", "1M")
    service = host.pid()
    told = host.program.run("volume", "create", "huge", "--size", "99999999999999999999", code=2).stderr
    assert "at most" in told
    # More than a file can hold on many file systems, and than its maps have room on any of these.
    qemu_io = ["qemu-io", "-f", "raw", host.nbd("data")]
    run(*qemu_io, "-c", "write -P 7 0 1M")
    host.program.run("volume", "resize", "data", "--size", "99999999999999999999", code=2)
    told = host.program.run("volume", "resize", "data", "--size", "1023T", code=1).stderr
    assert "cannot be resized" in told
    run(*qemu_io, "-c", "read -P 7 0 1M")
    assert host.show("data")["size"] == MIB
    host.program.run("volume", "resize", "data", "--size", "2M")
    run(*qemu_io, "-c", "read -P 7 0 1M", "-c", "read -P 0 1M 1M", "-c", "write -P 8 1M 1M")
    assert host.pid() == service, "nothing of this ended the service"
    host.program.run("volume", "stop")
    host.program.run("volume", "list")
    run(*qemu_io, "-c", "read -P 7 0 1M", "-c", "read -P 8 1M 1M")


def test_the_service_keeps_the_passphrase_to_itself(passphrase_host: Host, tmp_path: Path) -> None:
    """It is not in the environment, which goes on to what the service starts and to who looks at it; the vault can be opened all the same."""
    host = passphrase_host
    host.program.run("volume", "create", "data", "--size", "1M")
    environment = Path(f"/proc/{host.pid()}/environ").read_bytes()
    assert b"SAFEHOLD_HOME=" in environment
    assert b"correct horse" not in environment
    for _ in range(2):
        host.program.run("volume", "snapshot", "data", "--wait")
    assert len(host.program.json("points")["points"]) == 2


def test_a_service_that_is_started_on_a_volume_keeps_nobody_from_unmounting_it(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was given relative to where it was started is found all the same, and nothing that lies there is run."""
    place = tmp_path / "mnt"
    place.mkdir()
    mounted(host, "data", place, "64M")
    (place / "safehold.py").write_text("raise SystemExit('not the program')")
    host.program.run("volume", "stop")
    monkeypatch.chdir(place)
    given = {
        "SAFEHOLD_HOME": os.path.relpath(host.home),
        "SAFEHOLD_IDENTITY": os.path.relpath(host.home / "identity.pem"),
        "SAFEHOLD_VAULT": os.path.relpath(host.home / "vault"),
    }
    host.program.run("volume", "snapshot", "data", "--wait", **given)
    host.program.run("volume", "create", "other", "--size", "1M", **given)
    host.program.run("volume", "attach", "other", **given)
    assert host.show("other")["vault"] == str(host.home / "vault")
    monkeypatch.chdir("/")
    host.program.run("volume", "snapshot", "other", "--wait")
    host.program.run("volume", "detach", "data")
    host.program.run("volume", "stop")
    # As somebody starts it by hand, with a passphrase from a command.
    host.program.run("volume", "attach", "data", "--mount", place)
    host.program.run("volume", "stop")
    monkeypatch.chdir(place)
    command = f"cat {os.path.relpath(tmp_path / 'secret')}"
    (tmp_path / "secret").write_text((host.home / "kit.txt").read_text())
    host.program.environment |= {"SAFEHOLD_IDENTITY": "", "SAFEHOLD_PASSPHRASE_COMMAND": command}
    with host.program.start("volume", "serve") as served:
        for _ in range(200):
            if host.control.exists():
                break
            time.sleep(0.05)
        host.program.run("volume", "snapshot", "data", "--wait")
        monkeypatch.chdir("/")
        host.program.run("volume", "detach", "data")
        served.terminate()


def test_what_an_attached_disk_rests_on_knows_no_secret(passphrase_host: Host, tmp_path: Path) -> None:
    """The storage daemon lives as long as the disk is attached, and its environment can be looked at for as long."""
    host = passphrase_host
    host.program.run("volume", "create", "data", "--size", "1M")
    host.program.run("volume", "attach", "data", AWS_SECRET_ACCESS_KEY="of the bucket")
    attached = json.loads((host.home / "run/attached/data.json").read_text())
    names = {line.partition("=")[0] for line in Path(f"/proc/{attached['pid']}/environ").read_text().split("\0")}
    assert "PATH" in names
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", ""}


def test_a_service_killed_again_and_again_while_it_fills_a_volume_in(host: Host, tmp_path: Path) -> None:
    """Every acknowledged write is there, around it what the point holds; in the end nothing depends on the point."""
    rng = random.Random(5)
    content = bytearray().join(rng.randbytes(MIB) for _ in range(512))
    image = tmp_path / "image"
    image.write_bytes(content)
    host.program.run("backup", image, "--name", "disk")
    host.program.run("restore", "disk@latest", "--to", "volume:disk2")
    missing = []
    for number in range(12):
        at, length = rng.randrange(511 * MIB) & ~511, rng.choice([512, 4096, 70_000 & ~511, MIB])
        run("qemu-io", "-f", "raw", "-t", "writeback", "-c", f"write -P {number + 1} {at} {length}", host.nbd("disk2"))
        content[at : at + length] = bytes([number + 1]) * length
        os.kill(host.pid(), signal.SIGKILL)
        missing.append(host.show("disk2")["missing"])
    assert any(missing), "it was killed while it filled the volume in"
    host.wait_until_here("disk2")
    expected = tmp_path / "expected"
    expected.write_bytes(content)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", expected, host.nbd("disk2"))
    for _ in range(100):
        if host.program.run("point", "expire", "disk@latest", "--even-last", "--dry-run", code=None).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the point stays pinned")


def test_what_is_deleted_or_resized_stays_open_nowhere(host: Host) -> None:
    host.program.run("volume", "create", "other", "--size", "1M")
    run("qemu-io", "-f", "raw", "-c", "write 0 1M", host.nbd("other"))
    host.program.run("volume", "snapshot", "other", "--wait")
    counts = []
    for _ in range(4):
        host.program.run("restore", "other@latest", "--to", "volume:copy")
        run("qemu-io", "-f", "raw", "-c", "read 0 1M", host.nbd("copy"))
        host.program.run("volume", "delete", "copy", "--yes")
        host.program.run("volume", "create", "data", "--size", "1M")
        host.program.run("volume", "resize", "data", "--size", "2M")
        run("qemu-io", "-f", "raw", "-c", "write 0 1M", host.nbd("data"))
        host.program.run("volume", "delete", "data", "--yes")
        counts.append(len(list(Path(f"/proc/{host.pid()}/fd").iterdir())))
    # A connection may be about to be closed; a volume has more than three files.
    assert max(counts) - min(counts) < 4, counts


def test_a_group_that_the_configuration_names(host: Host) -> None:
    for name in ("db-data", "db-log"):
        host.program.run("volume", "create", name, "--size", "1M")
    (host.home / "config").mkdir(exist_ok=True)
    (host.home / "config/safehold.yaml").write_text(f"""\
version: 1
vaults:
  main: {{place: {host.home}/vault, kit: {host.home}/kit.txt}}
resources:
  db: {{volumes: [db-data, db-log], plan: hourly}}
plans:
  hourly: {{every: 1h}}
""")
    made = host.program.json("volume", "snapshot", "--group", "db", "--wait")
    members = host.program.json("point", "show", f"db-log@{made['point']}")["members"]
    assert [member["name"] for member in members] == ["db-data", "db-log"]
    assert host.program.json("volume", "resize", "db-log", "--size", "2M")["size"] == 2 << 20
    assert host.program.json("volume", "delete", "db-log", "--yes") == {"volume": "db-log", "deleted": True}
    assert host.program.json("volume", "delete", "db-log", "--undo")["deleted"] is False
    host.program.run("volume", "delete", "db-log", "--for-good", "--yes")
    host.program.run("volume", "delete", "db-data", "--yes")
    assert "db-data" in host.program.run("volume", "delete", "db-data", "--for-good", "--dry-run").stdout
    assert [one["name"] for one in host.program.json("volume", "list", "--deleted")["deleted"]] == ["db-data"]
    host.program.run("volume", "delete", "db-data", "--for-good", "--yes")
    assert host.program.json("volume", "list", "--deleted")["deleted"] == []
    host.program.run("volume", "delete", "db-data", "--for-good", "--yes", code=2)
    assert host.program.json("volume", "stop") == {"running": False, "attached": []}


def test_what_is_damaged_is_told_of_and_got_rid_of(host: Host) -> None:
    """A volume whose record is rubbish, in use and in the recycle bin, and the point that stays pinned by it."""
    host.program.run("volume", "create", "data", "--size", "64M")
    run("qemu-io", "-f", "raw", "-c", "write 0 64M", host.nbd("data"))
    host.program.run("volume", "snapshot", "data", "--wait")
    # It is never filled in whole, and keeps its point.
    largest = max((host.home / "vault/packs").rglob("*"), key=lambda one: one.stat().st_size if one.is_file() else 0)
    with open(largest, "r+b") as pack:
        pack.seek(largest.stat().st_size // 2)
        pack.write(bytes(4096))
    host.program.run("restore", "data@latest", "--to", "volume:copy")
    record = host.home / "state/volumes/copy/vol.json"
    os.kill(host.pid(), signal.SIGKILL)
    assert json.loads(record.read_text())["pin"]
    record.write_text("rubbish")
    told = host.program.json("volume", "list")
    assert list(told["broken"]) == ["copy"]
    status = host.program.run("status", code=1).stdout
    assert "volume copy cannot be opened" in status
    assert 'see the runbook, "A volume cannot be opened"' in status
    refused = host.program.run("point", "unpin", "data@latest", "--yes", code=2).stderr
    assert "the volume copy of this host cannot be read, and may still need this point" in refused
    assert "which cannot be opened" in host.program.run("volume", "delete", "copy", "--dry-run").stdout
    host.program.run("volume", "delete", "copy", "--yes")
    (gone,) = host.program.json("volume", "list", "--deleted")["deleted"]
    assert f"safehold volume delete {gone['entry']} --for-good" in host.program.run("status", code=1).stdout
    assert "damaged" in host.program.run("volume", "list", "--deleted").stdout
    assert "its point stays pinned" in host.program.run("volume", "delete", gone["entry"], "--for-good", "--yes").stderr
    host.program.run("status")
    refused = host.program.run("point", "expire", "data@latest", "--even-last", "--dry-run", code=2).stderr
    assert "safehold point unpin @" in refused
    assert "the volume copy on" in host.program.run("point", "unpin", "data@latest", "--dry-run").stdout
    host.program.run("point", "unpin", "data@latest", code=2)
    assert host.program.json("point", "unpin", "data@latest", "--yes")["unpinned"][0]["volume"] == "copy"
    host.program.run("point", "expire", "data@latest", "--even-last", "--dry-run")
