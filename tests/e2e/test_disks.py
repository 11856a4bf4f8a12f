"""The main job, judged by cmp, sha256sum, qemu-img and fsck."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.disks import BLOCK, make_disk, make_ext4, same
from tests.mounts import mounted


def stored(vault: Path) -> int:
    return sum(p.stat().st_size for p in vault.rglob("*") if p.is_file())


def test_generations_of_a_disk(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "ab.0tc....dd")
    first = program.json("backup", disk, "--tag", "env=prod")["points"][0]
    assert first["size"] == 12 * BLOCK
    assert first["new"] < 5.1 * BLOCK, "a, b, t, c and one d, beside metadata"
    make_disk(tmp_path / "second.img", "ab.0tx....dd")
    os.replace(tmp_path / "second.img", disk)
    second = program.json("backup", disk)["points"][0]
    assert BLOCK <= second["stored"] <= 1.1 * BLOCK, "only the changed block, and little more"
    assert program.json("diff", "disk@" + first["point"], "disk@latest")["ranges"] == [[5 * BLOCK, 6 * BLOCK]]

    program.run("restore", "disk@latest", "--to", tmp_path / "new.img")
    same(disk, tmp_path / "new.img")
    program.run("restore", f"disk@{first['point'][:8]}", "--to", tmp_path / "old.img")
    same(make_disk(tmp_path / "expected.img", "ab.0tc....dd"), tmp_path / "old.img")
    assert (tmp_path / "old.img").stat().st_blocks * 512 < 8 * BLOCK, "sparse where zero"
    listed = program.json("points", "disk")["points"]
    assert [p["id"] for p in listed] == [first["point"], second["point"]]
    assert listed[0]["tags"] == {"env": "prod"}
    for how in ("--structure", "--data", "--stored"):
        assert program.json("verify", how)["ok"]


def test_unchanged_disk_costs_nothing(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc..t")
    program.run("backup", disk)
    before = stored(vault)
    again = program.json("backup", disk)["points"][0]
    assert again["new"] == again["stored"] == 0
    assert stored(vault) - before < 4096, "a session and a point"


def test_odd_sizes_and_empty_disks(program: Program, vault: Path, tmp_path: Path) -> None:
    for name, size in (("empty", 0), ("one", 1), ("odd", BLOCK + 511), ("hole", 5 * BLOCK + 7)):
        disk = tmp_path / f"{name}.img"
        with disk.open("wb") as file:
            if name != "hole":
                file.write(os.urandom(size))
            file.truncate(size)
        program.run("backup", disk)
        program.run("restore", f"{name}@latest", "--to", tmp_path / f"{name}.back")
        same(disk, tmp_path / f"{name}.back")
    assert program.json("verify", "--data")["ok"]


def test_ext4_survives_the_round_trip(program: Program, vault: Path, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    for n in range(50):
        (content / f"file-{n}").write_bytes(os.urandom(10_000 * n % 70_000))
    disk = make_ext4(tmp_path / "disk.img", "24", content)
    program.run("backup", disk)
    shown = program.json("point", "show", "disk@latest")["members"][0]
    assert shown["consistency"] == "filesystem"
    assert shown["contents"][0]["type"] == "ext4"
    uuid = subprocess.run(
        ["/usr/sbin/blkid", "-s", "UUID", "-o", "value", disk], capture_output=True, text=True, check=True
    )
    assert shown["contents"][0]["uuid"] == uuid.stdout.strip()
    program.run("restore", "disk@latest", "--to", tmp_path / "back.img")
    subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", tmp_path / "back.img"], check=True, capture_output=True)
    sums = [
        subprocess.run(["sha256sum", p], capture_output=True, check=True).stdout.split()[0]
        for p in (disk, tmp_path / "back.img")
    ]
    assert sums[0] == sums[1] == hashlib.sha256(disk.read_bytes()).hexdigest().encode()


def test_qcow2(program: Program, vault: Path, tmp_path: Path) -> None:
    raw = make_disk(tmp_path / "raw.img", "a..0bt...c")
    image = tmp_path / "guest.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "-c", raw, image], check=True)
    done = program.json("backup", image)["points"][0]
    assert done["size"] == 10 * BLOCK
    program.run("restore", "guest@latest", "--to", tmp_path / "back.img")
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, tmp_path / "back.img"], check=True)
    assert program.json("point", "show", "guest@latest")["members"][0]["format"] == "qcow2"


def test_qcow2_that_qemu_refuses(program: Program, vault: Path, tmp_path: Path) -> None:
    image = tmp_path / "broken.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(600))
    said = program.run("backup", image, code=1).stderr
    assert "qemu-nbd does not open the image" in said
    assert "qemu-img check" in said


def test_qcow2_without_qemu(program: Program, vault: Path, tmp_path: Path) -> None:
    image = tmp_path / "guest.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    assert "apt-get install qemu-utils" in program.run("backup", image, code=1, PATH="/nonexistent").stderr


def test_overwrite_and_delta(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc.0t")
    program.run("backup", disk)
    target = make_disk(tmp_path / "target.img", "abxyzt")
    assert "--overwrite" in program.run("restore", "disk@latest", "--to", target, code=1).stderr
    same(target, make_disk(tmp_path / "untouched.img", "abxyzt"))
    done = program.json("restore", "disk@latest", "--to", target, "--delta")
    same(disk, target)
    assert (done["written"], done["zeroed"], done["kept"]) == (BLOCK, 2 * BLOCK, 3 * BLOCK)
    make_disk(target, "zzzzzzzzz")
    program.run("restore", "disk@latest", "--to", target, "--overwrite")
    same(disk, target)
    assert program.json("restore", "disk@latest", "--to", target, "--delta")["kept"] == 6 * BLOCK


def test_a_write_during_the_backup_is_noticed(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abcdefgh" * 40)
    with disk.open("r+b") as writer:
        writer.write(b"x")
        writer.flush()
        said = program.run("backup", disk, code=7).stderr
        assert f"process {os.getpid()}" in said
        assert "--require none" in said
        done = program.json("backup", disk, "--require", "none")["points"][0]
        assert done["consistency"] == "none"
    assert [p["members"][0]["consistency"] for p in program.json("points")["points"]] == ["none"]
    # Nobody has it open at the start; somebody writes while it is read.
    running = program.start("backup", disk)
    while running.poll() is None:
        with disk.open("r+b") as writer:
            writer.seek(100)
            writer.write(os.urandom(8))
    said = running.communicate()[1]
    assert running.returncode == 7, said
    assert len(program.json("points")["points"]) == 1


@pytest.fixture
def loop(tmp_path: Path):  # type: ignore[no-untyped-def]
    content = tmp_path / "content"
    content.mkdir()
    (content / "hello").write_text("hello")
    image = make_ext4(tmp_path / "backing.img", "16", content)
    device = subprocess.run(
        ["losetup", "-f", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    yield Path(device)
    subprocess.run(["umount", device], check=False, capture_output=True)
    subprocess.run(["losetup", "-d", device], check=True)


def test_block_devices(program: Program, vault: Path, tmp_path: Path, loop: Path) -> None:
    where = tmp_path / "mounted"
    where.mkdir()
    program.run("backup", loop, "--name", "data")
    program.run("restore", "data@latest", "--to", tmp_path / "back.img")
    same(loop, tmp_path / "back.img")
    subprocess.run(["mount", loop, where], check=True)
    said = program.run("backup", loop, "--name", "data", code=7).stderr
    assert f"mounted on {where}" in said
    assert program.json("backup", loop, "--name", "data", "--require", "none")["points"][0]["consistency"] == "none"
    for option in ("--overwrite", "--delta"):
        assert "mounted on" in program.run("restore", "data@latest", "--to", loop, option, code=1).stderr
    subprocess.run(["umount", where], check=True)
    subprocess.run(
        ["dd", "if=/dev/urandom", f"of={loop}", "bs=1M", "count=16", "conv=fsync", "status=none"], check=True
    )
    first = program.json("points", "data")["points"][0]["id"]
    program.run("restore", f"data@{first}", "--to", loop, "--overwrite")
    same(loop, tmp_path / "back.img")
    subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", loop], check=True, capture_output=True)
    large = make_disk(tmp_path / "large.img", "." * 40)
    program.run("backup", large)
    assert "the point needs" in program.run("restore", "large@latest", "--to", loop, "--overwrite", code=1).stderr


def test_several_sources(program: Program, vault: Path, tmp_path: Path) -> None:
    good = make_disk(tmp_path / "good.img", "ab")
    other = make_disk(tmp_path / "other.img", "cd")
    done = program.run("backup", good, tmp_path / "missing.img", other, code=2)
    assert "2 of 3 sources backed up" in done.stdout
    assert [p["members"][0]["name"] for p in program.json("points")["points"]] == ["good", "other"]


def test_two_at_once(program: Program, vault: Path, tmp_path: Path) -> None:
    one, two = make_disk(tmp_path / "one.img", "abcdefgh"), make_disk(tmp_path / "two.img", "abcdxyz0")
    running = [
        program.start("backup", disk, "--name", name)
        for disk, name in ((one, "one"), (two, "two"), (one, "same"), (one, "same"))
    ]
    for process in running:
        said = process.communicate()
        assert process.returncode == 0, said
    assert len(program.json("points")["points"]) == 4
    for name, disk in (("one", one), ("two", two), ("same", one)):
        program.run("restore", f"{name}@latest", "--to", tmp_path / f"{name}.back")
        same(disk, tmp_path / f"{name}.back")
    assert program.json("verify", "--data")["ok"]


def test_two_hosts_do_not_share_a_name(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "ab")
    program.run("backup", disk)
    other = Program(tmp_path / "other-home", {"SAFEHOLD_VAULT": str(vault)})
    (other.home / "state").mkdir(parents=True)
    (other.home / "state/host-id").write_text("another machine\n")
    assert "--adopt" in other.run("backup", disk, code=2).stderr
    other.run("backup", disk, "--adopt")
    other.run("backup", disk)
    assert len(program.json("points", "disk")["points"]) == 3


def test_two_disks_do_not_share_a_name(program: Program, vault: Path, tmp_path: Path) -> None:
    """Many an image is called disk.img: the history of one is not that of another."""
    for name in ("web", "db"):
        (tmp_path / name).mkdir()
    web, db = make_disk(tmp_path / "web/disk.img", "ab"), make_disk(tmp_path / "db/disk.img", "cd")
    program.run("backup", web)
    told = program.run("backup", db, code=2).stderr
    assert str(web) in told
    assert "--name" in told
    program.run("backup", db, "--name", "db")
    assert "1 of 2 sources" in program.run("backup", web, db, code=2).stdout
    # One that was moved goes on.
    moved = web.rename(tmp_path / "disk.img")
    program.run("backup", moved)
    assert len(program.json("points", "disk")["points"]) == 3


def test_what_is_there(program: Program, vault: Path, tmp_path: Path) -> None:
    assert "no points yet" in program.run().stdout
    disk = make_disk(tmp_path / "disk.img", "ab")
    assert "would back up disk" in program.run("backup", disk, "--dry-run").stdout
    assert program.json("points")["points"] == []
    program.run("backup", disk, "--name", "data", "--keep-until-deleted")
    for arguments in ([], ["status"]):
        assert "data" in program.run(*arguments).stdout
    assert program.json("status")["resources"]["data"]["consistency"] == "crash"
    assert program.json("point", "list", "data")["points"][0]["keep_until_deleted"] is True
    assert "kept until deleted" in program.run("point", "show", "data@latest").stdout
    info = program.json("vault", "info")
    assert (info["points"], info["resources"], info["problems"]) == (1, ["data"], [])
    assert "would write data" in program.run("restore", "data@latest", "--to", tmp_path / "x", "--dry-run").stdout
    assert not (tmp_path / "x").exists()
    assert program.json("points", "--vault", tmp_path / "nothing", code=2)["error"]["code"] == 2


def test_interrupted(program: Program, vault: Path, tmp_path: Path) -> None:
    """SIGINT and SIGTERM stop a backup and a restore at a safe place, and leave nothing that looks whole."""

    def sessions() -> int:
        return sum(path.is_file() for path in (vault / "sessions").rglob("*"))

    for seed, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        disk = make_disk(tmp_path / "disk.img", "".join(chr(0x4E00 + n) for n in range(600)), seed)
        before = sessions()
        running = program.start("backup", disk)
        while sessions() == before and running.poll() is None:
            time.sleep(0.005)
        running.send_signal(number)
        said = running.communicate()[1]
        assert running.returncode == 1, said
        assert "the run was stopped" in said
    assert program.json("points")["points"] == []
    program.run("backup", disk)
    running = program.start("restore", "disk@latest", "--to", tmp_path / "back.img")
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    running.communicate()
    if running.returncode != 0:
        assert not (tmp_path / "back.img").exists()
        assert [p.name for p in tmp_path.iterdir() if "restoring" in p.name] == []
        program.run("restore", "disk@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")


def test_salvage(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(
        tmp_path / "disk.img", "abcdefghij" * 4 + "klmnopqrst" + "".join(chr(0x4E00 + n) for n in range(40))
    )
    program.run("backup", disk)
    pack = max((vault / "packs").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    said = program.run("verify", "--stored", code=4).stdout
    assert pack.name in said
    said = program.run("verify", "--data", code=4).stdout
    assert pack.name in said
    assert "does not open: its bytes are not what was stored" in said
    refused = program.run("restore", "disk@latest", "--to", tmp_path / "back.img", code=4).stderr
    assert pack.name in refused
    assert "--salvage" in refused
    assert not (tmp_path / "back.img").exists()
    done = program.json("restore", "disk@latest", "--to", tmp_path / "back.img", "--salvage", code=3)
    lost = sum(end - start for start, end in done["lost"])
    assert 0 < lost < disk.stat().st_size / 10
    original, back = disk.read_bytes(), (tmp_path / "back.img").read_bytes()
    differing = {
        n
        for n in range(len(original) // BLOCK)
        if original[n * BLOCK : (n + 1) * BLOCK] != back[n * BLOCK : (n + 1) * BLOCK]
    }
    assert differing == {n for start, end in done["lost"] for n in range(start // BLOCK, end // BLOCK)}


def test_salvage_without_metadata(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    program.run("backup", disk)
    (pack,) = (path for path in (vault / "meta").rglob("*") if path.is_file())
    pack.unlink()
    everything = f"bytes 0-{disk.stat().st_size - 1}"
    assert everything in program.run("verify", code=4).stdout
    refused = program.run("restore", "disk@latest", "--to", tmp_path / "back.img", code=4).stderr
    assert everything in refused
    assert pack.name in refused
    done = program.run("restore", "disk@latest", "--to", tmp_path / "back.img", "--salvage", code=3)
    assert f"lost: {everything}" in done.stdout
    assert (tmp_path / "back.img").read_bytes() == bytes(disk.stat().st_size)


def test_a_vault_that_was_rolled_back_stays_noticed(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"one" * 1000)
    program.run("backup", disk)
    shutil.copytree(vault, tmp_path / "old")
    disk.write_bytes(b"two" * 1000)
    lost = program.json("backup", disk)["points"][0]["point"]
    shutil.rmtree(vault)
    (tmp_path / "old").rename(vault)
    assert "is gone" in program.run("points").stderr
    # A backup in between must not make the machine forget what it knew.
    assert lost in program.run("backup", disk).stderr
    assert lost in program.run("verify", code=4).stdout


def test_what_is_open_elsewhere_is_not_written_over(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"one" * 1000)
    program.run("backup", disk)
    with disk.open("r+b"):
        for how in ("--overwrite", "--delta"):
            for dry in ([], ["--dry-run"]):
                said = program.run("restore", "disk@latest", "--to", disk, how, *dry, code=1).stderr
                assert "in use" in said
    assert "target exists" in program.run("restore", "disk@latest", "--to", disk, "--dry-run", code=1).stderr


def test_init_where_nothing_can_be_recorded(tmp_path: Path) -> None:
    program = Program(Path("/proc/nowhere"))
    done = program.run("vault", "init", tmp_path / "vault")
    assert "cannot be recorded" in done.stderr
    assert "SHK1-" in done.stdout
    assert (
        "cannot be written there"
        in program.run("vault", "init", tmp_path / "v2", "--kit-file", tmp_path / "no/kit", code=2).stderr
    )
    assert not (tmp_path / "v2").exists()


def test_a_mounted_btrfs_is_seen(program: Program, vault: Path, tmp_path: Path) -> None:
    """Its number in the table of mounts is not that of its device."""
    with mounted(tmp_path / "disk", "btrfs") as where:
        device = subprocess.run(
            ["findmnt", "-no", "SOURCE", where], capture_output=True, text=True, check=True
        ).stdout.strip()
        assert f"mounted on {where}" in program.run("backup", device, "--name", "data", code=7).stderr


def test_a_mount_that_only_another_namespace_sees(program: Program, vault: Path, tmp_path: Path, loop: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True)
    (tmp_path / "on").mkdir()
    hidden = ["unshare", "--mount", "sh", "-c", f'mount {loop} "{tmp_path}/on" && echo mounted && read -r _']
    with subprocess.Popen(hidden, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mounted\n"
        assert "another namespace" in program.run("backup", loop, "--name", "data", code=7).stderr
        other.communicate("\n")
    program.run("backup", loop, "--name", "data")
