"""Which source takes what the user names."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from safehold.testing.program import Program
from tests.disks import make_disk, make_ext4, same

MODULE = """
import contextlib

from safehold.model.consistency import Consistency
from safehold.model.extents import Extent, ExtentKind
from safehold.model.resource import ResourceRef
from safehold.ports.source import Interval


class Disk:
    size = 12_000

    def extents(self, since=None):
        yield Extent(0, self.size, ExtentKind.DATA)

    def read_into(self, offset, buf):
        buf[:] = (b"from elsewhere " * 1000)[offset : offset + len(buf)]


class Capture:
    content, taken, topology, achieved = Disk(), Interval(0.0, 1.0), None, Consistency.CRASH

    def __init__(self, resource):
        self.resource = resource

    def committed(self):
        pass


class Source:
    def resolve(self, spec):
        kind, _, name = spec.partition(":")
        kinds = {"demo": "volume", "odd": "oddity"}
        return ResourceRef(kinds[kind], name, spec) if kind in kinds else None

    @contextlib.contextmanager
    def capture(self, ref, require, ctx):
        yield Capture(ref)
"""


def install(place: Path, entry: str) -> str:
    """A package in a directory, as pip leaves it; returns the path to give to Python."""
    information = place / "demo_source-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: demo-source\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[safehold.sources]\ndemo = {entry}\n")
    (place / "demo_source.py").write_text(MODULE)
    return str(place)


def test_a_source_of_another_package(program: Program, vault: Path, tmp_path: Path) -> None:
    assert "no such file" in program.run("backup", "demo:thing", code=2).stderr
    program.environment["PYTHONPATH"] = install(tmp_path / "site", "demo_source:Source")
    assert program.json("backup", "demo:thing")["points"][0]["size"] == 12_000
    program.run("restore", "thing@latest", "--to", tmp_path / "back.img")
    assert (tmp_path / "back.img").read_bytes() == (b"from elsewhere " * 1000)[:12_000]
    # Ours are asked first, and what nobody takes is told as before.
    program.run("backup", make_disk(tmp_path / "disk.img", "ab"))
    assert "no such file" in program.run("backup", "other:thing", code=2).stderr
    said = program.run("backup", "odd:thing", code=2).stderr
    assert "the kind 'oddity', which cannot be restored" in said
    assert len(program.json("points")["points"]) == 2


@pytest.mark.parametrize("entry", ["demo_source:Nothing", "absent_module:Source"])
def test_a_source_that_does_not_load(program: Program, vault: Path, tmp_path: Path, entry: str) -> None:
    program.environment["PYTHONPATH"] = install(tmp_path / "site", entry)
    said = program.run("backup", "demo:thing", code=2).stderr
    assert "the source 'demo' cannot be loaded" in said
    assert "reinstall or remove" in said
    program.run("backup", make_disk(tmp_path / "disk.img", "ab"))


def test_a_volume_by_its_prefix(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "a file of any name", "abc.0")
    done = program.json("backup", f"volume:{disk}")["points"][0]
    assert done["size"] == disk.stat().st_size
    member = program.json("point", "show", f"{disk.name}@latest")["members"][0]
    assert (member["kind"], member["location"]) == ("volume", str(disk))
    program.run("restore", f"{disk.name}@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")
    assert "cannot be backed up" in program.run("backup", f"volume:{tmp_path / 'none'}", code=2).stderr
    (tmp_path / "folder").mkdir()
    said = program.run("backup", f"volume:{tmp_path / 'folder'}", code=2).stderr
    assert "neither an image file nor a block device" in said


def test_a_file_that_is_taken_as_a_disk_is_told_of(program: Program, vault: Path, tmp_path: Path) -> None:
    """Once, and only where it may have been meant as a file."""
    conf, content = tmp_path / "site1.conf", tmp_path / "content"
    content.mkdir()
    conf.write_text("server {}\n")
    note = f"as a file: tree:{conf}"
    assert note in program.run("backup", conf, "--dry-run").stderr
    first = program.run("backup", conf)
    assert note in first.stderr
    assert note not in program.run("backup", conf).stderr
    assert "taken as a disk" not in program.run("backup", f"tree:{conf}", "--name", "file").stderr
    assert "taken as a disk" not in program.run("backup", f"volume:{conf}", "--name", "meant").stderr
    for disk in (make_disk(tmp_path / "disk.RAW", "ab"), make_ext4(tmp_path / "without an ending", "8", content)):
        assert "taken as a disk" not in program.run("backup", disk).stderr


def test_a_disk_is_not_restored_onto_a_directory(program: Program, vault: Path, tmp_path: Path) -> None:
    program.run("backup", make_disk(tmp_path / "disk.img", "ab"))
    place = tmp_path / "place"
    place.mkdir()
    said = program.run("restore", "disk@latest", "--to", place, code=1).stderr
    assert "target is a directory" in said
    assert f"{place}/NAME" in said
    for more in ((), ("--dry-run",)):
        said = program.run("restore", "disk@latest", "--to", place, "--overwrite", *more, code=1).stderr
        assert "target is a directory" in said


def test_a_volume_prefix_takes_a_device(program: Program, vault: Path, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.img", "abc")
    loop = subprocess.run(
        ["losetup", "--show", "-r", "-f", disk], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        program.run("backup", f"volume:{loop}", "--name", "device")
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)
    program.run("restore", "device@latest", "--to", tmp_path / "back.img")
    same(disk, tmp_path / "back.img")


def test_qcow2_under_another_name_is_refused(program: Program, vault: Path, tmp_path: Path) -> None:
    image, right = tmp_path / "disk.img", tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    for spec in (image, f"volume:{image}"):
        said = program.run("backup", spec, code=2).stderr
        assert "begins like a qcow2 image" in said
        assert f"tree:{image}" in said
    program.run("backup", f"tree:{image}", "--name", "as it is")
    os.rename(image, right)
    assert program.json("backup", right)["points"][0]["size"] == 1 << 20
    # A raw disk is none, whatever it is called.
    (tmp_path / "raw.img").write_bytes(b"QFI" + bytes(5000))
    program.run("backup", tmp_path / "raw.img")


def test_the_vault_goes_neither_into_itself_nor_is_it_restored_over(
    program: Program, vault: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(vault)
    for place in (vault, vault / "keys", f"tree:{vault}", tmp_path / "link", "~/vault/keys"):
        assert "the vault itself" in program.run("backup", place, code=2, HOME=str(tmp_path)).stderr
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"x" * 70_000)
    program.run("backup", disk)
    before = sorted(path for path in vault.rglob("*") if path.parent.name != "notes")
    for place in (vault, vault / "packs" / "disk.img"):
        assert (
            "in the vault itself" in program.run("restore", "disk@latest", "--to", place, "--overwrite", code=2).stderr
        )
    assert sorted(path for path in vault.rglob("*") if path.parent.name != "notes") == before
    program.run("restore", "disk@latest", "--to", f"{vault}.img")


def test_a_vault_under_another_name_is_still_one(program: Program, vault: Path, tmp_path: Path) -> None:
    """Mounts give directories any name."""
    tree, bound = tmp_path / "tree", tmp_path / "tree" / "bound"
    bound.mkdir(parents=True)
    (tree / "file").write_text("kept")
    subprocess.run(["mount", "--bind", vault, bound], check=True)
    try:
        assert "the vault itself" in program.run("backup", bound, code=2).stderr
        assert "the vault itself" in program.run("backup", bound / "keys", code=2).stderr
        program.run("backup", tree, "--name", "tree")
        listed = [one["path"] for one in program.json("ls", "tree@latest", "--recursive")["entries"]]
        assert [path for path in listed if "bound" in path or path.endswith("file")] == [
            f"{tree}/bound",
            f"{tree}/file",
        ]
        said = program.run("restore", "tree@latest", "--to", bound / "x", code=2).stderr
        assert "in the vault itself" in said
    finally:
        subprocess.run(["umount", bound], check=True)


def test_no_vault_is_made_in_another(program: Program, vault: Path, tmp_path: Path) -> None:
    for place in (vault / "more", vault / "packs" / "deep" / "vault"):
        assert "lies in another vault" in program.run("vault", "init", place, code=2).stderr
    program.run("vault", "init", tmp_path / "beside", SAFEHOLD_PASSPHRASE="another")


def test_what_a_program_writes(program: Program, vault: Path, tmp_path: Path) -> None:
    """Kept where it ends well; of one that fails, is killed or writes nothing there is no point, and the one before stays the newest."""
    data = bytes(range(256)) * 9000
    (tmp_path / "data").write_bytes(data)
    dump = tmp_path / "dump it"
    dump.write_text(f"#!/bin/sh\ncat {tmp_path}/data\n")
    dump.chmod(0o700)
    spec = f"command:'{dump}' --all"
    assert program.json("backup", spec, "--name", "dump")["points"][0]["size"] == len(data)
    for end in ("exit 3", "kill -9 $$"):
        dump.write_text(f"#!/bin/sh\nhead -c 1500000 {tmp_path}/data\n{end}\n")
        said = program.run("backup", spec, "--name", "dump", code=1).stderr
        assert ("exit code 3" if "3" in end else "SIGKILL") in said
        assert "nothing that it wrote is kept" in said
    dump.write_text("#!/bin/sh\n")
    assert "wrote nothing" in program.run("backup", spec, "--name", "dump", code=1).stderr
    assert "cannot be started" in program.run("backup", f"command:{tmp_path}/none", "--name", "dump", code=1).stderr
    assert "no command" in program.run("backup", "command:it's", "--name", "dump", code=2).stderr
    assert "--name" in program.run("backup", spec, code=2).stderr
    assert len(program.json("points", "dump")["points"]) == 1
    program.run("restore", "dump@latest", "--to", tmp_path / "back")
    same(tmp_path / "data", tmp_path / "back")


def ended(number: str) -> bool:
    """A process is gone, or its end only waits to be noticed."""
    for _ in range(40):
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("asks", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("says", ["more", ""], ids=["talks", "is silent"])
def test_a_program_ends_with_the_backup_that_started_it(
    program: Program, vault: Path, tmp_path: Path, says: str, asks: signal.Signals
) -> None:
    """And with it what it has started, even where that ignores the first signal. A program is not told what opens the vault."""
    endless = tmp_path / "endless"
    endless.write_text(f"""#!/bin/bash
env > {tmp_path}/environment
(trap '' TERM; echo $BASHPID > {tmp_path}/child; exec > /dev/null; while sleep 0.1; do :; done) &
echo $$ > {tmp_path}/pid
while sleep 0.1; do [ -z "{says}" ] || echo "{says}"; done
""")
    endless.chmod(0o700)
    assert "would back up" in program.run("backup", f"command:{endless}", "--name", "endless", "--dry-run").stdout
    assert not (tmp_path / "pid").exists()
    running = program.start("backup", f"command:{endless}", "--name", "endless")
    numbers = [tmp_path / "pid", tmp_path / "child"]
    while not all(path.exists() and path.read_text().endswith("\n") for path in numbers):
        time.sleep(0.05)
    time.sleep(1)
    running.send_signal(asks)
    running.communicate(timeout=60)
    assert running.returncode == 1
    for path in numbers:
        assert ended(path.read_text().strip())
    assert "SAFEHOLD_" not in (tmp_path / "environment").read_text()
    assert "PATH=" in (tmp_path / "environment").read_text()
