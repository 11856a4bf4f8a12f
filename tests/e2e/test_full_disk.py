"""A file system below live volumes that has no room left, judged by their clients, cmp and qemu-img."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contents import equal
from tests.e2e.hosts import Host, run
from tests.mounts import mounted
from tests.nbd import Writer

MIB = 1 << 20


def test_a_full_disk_costs_writes_and_nothing_else(tmp_path: Path) -> None:
    """No room below: the client is told, orders say why, what was acknowledged stays; with room again all goes on."""
    with tempfile.TemporaryDirectory(prefix="sh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        home.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=24M", "tmpfs", home)
        try:
            host = Host(home)
            host.program.run("volume", "create", "data", "--size", "64M")
            writer = Writer(host.socket, "data")
            written = bytearray()
            rng = random.Random(3)
            with writer.connection:
                for at in range(0, 64 * MIB, MIB):
                    data = rng.randbytes(MIB)
                    try:
                        writer.write(at, data)
                    except AssertionError:
                        break
                    written += data
            assert len(written) < 40 * MIB
            failed = host.program.run("volume", "create", "other", "--size", "1G", code=1).stderr
            assert "No space left" in failed
            host.program.run("volume", "show", "data")
            image = tmp_path / "now.img"
            run("qemu-img", "convert", "-f", "raw", "-O", "raw", host.nbd("data"), image)
            equal(image.read_bytes()[: len(written)], written)
            run("mount", "-o", "remount,size=300M", home)
            host.program.run("volume", "list")
            host.program.run("volume", "stop")
            host.program.run("volume", "snapshot", "data", "--wait")
            host.program.run("restore", "data@latest", "--to", tmp_path / "restored.img")
            equal((tmp_path / "restored.img").read_bytes()[: len(written)], written)
            host.close()
        finally:
            run("umount", "--lazy", home)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_volume_can_be_deleted_to_make_room(kind: str, made: Path, tmp_path: Path) -> None:
    """Also one that has writes which are in no log yet, for which there is no room; until it is gone for good it can be taken back."""
    content = random.Random(7).randbytes(16 * MIB)
    with (
        tempfile.TemporaryDirectory(prefix="sh", dir="/tmp") as folder,
        mounted(Path(folder) / "fs", kind, size=400 * MIB) as where,
    ):
        (where / "home").mkdir()
        host = Host(where / "home", made)
        try:
            host.program.run("volume", "create", "data", "--size", "64M")
            # Its snapshot waits, so that writes go beside what it holds: of that the log is told by a flush, which finds no room.
            vault, away = where / "home" / "vault", where / "home" / "away"
            writer = Writer(host.socket, "data")
            with writer.connection:
                writer.write(0, bytes(16 * MIB))
            vault.rename(away)
            host.program.run("volume", "snapshot", "data")
            writer = Writer(host.socket, "data")
            with writer.connection:
                for at in range(0, len(content), MIB):
                    writer.write(at, content[at : at + MIB])
                run("sync", "-f", where)
                fill(where / "filler")
            for _ in range(100):
                if not host.show("data")["clients"]:
                    break
                time.sleep(0.05)
            host.program.run("volume", "delete", "data", "--yes")
            assert "data" in host.program.run("volume", "list", "--deleted").stdout
            undone = host.program.run("volume", "delete", "data", "--undo", code=None)
            if undone.returncode:
                assert kind == "btrfs", "elsewhere nothing of it needs room"
                assert "out of the recycle bin, and the volume cannot be opened (No space left" in undone.stderr
            else:
                run("qemu-img", "convert", "-f", "raw", "-O", "raw", host.nbd("data"), tmp_path / "now.img")
                equal((tmp_path / "now.img").read_bytes()[: len(content)], content)
            host.program.run("volume", "delete", "data", "--for-good", "--yes")
            away.rename(vault)
            # There is room again, which btrfs gives back behind, and what was full goes on.
            for _ in range(100):
                run("sync", "-f", where)
                if shutil.disk_usage(where).free > 8 * MIB:
                    break
                time.sleep(0.1)
            (where / "more").write_bytes(content[: 4 * MIB])
            host.program.run("volume", "create", "other", "--size", "1M")
        finally:
            (where / "filler").unlink(missing_ok=True)
            host.close()


@pytest.fixture
def copying(made: Path) -> Iterator[tuple[Host, Path]]:
    """A machine whose volumes lie on a file system that never overwrites, and a file there to fill it with."""
    with (
        tempfile.TemporaryDirectory(prefix="sh", dir="/tmp") as folder,
        mounted(Path(folder) / "fs", "btrfs", size=400 * MIB) as where,
    ):
        (where / "home").mkdir()
        host = Host(where / "home", made)
        try:
            yield host, where / "filler"
        finally:
            (where / "filler").unlink(missing_ok=True)
            host.close()


def fill(filler: Path) -> None:
    """Leave no room on its file system."""

    def write(piece: int) -> None:
        while file.write(os.urandom(piece)):
            pass

    with filler.open("ab", buffering=0) as file:
        for piece in (MIB, 4096):
            with pytest.raises(OSError, match="No space left"):
                write(piece)
        os.fsync(file.fileno())


def test_a_full_file_system_that_never_overwrites(copying: tuple[Host, Path], tmp_path: Path) -> None:
    """Even a mark in a map whose space was taken beforehand needs room there. The client is told, and the service that has the map lives."""
    host, filler = copying
    host.program.run("volume", "create", "data", "--size", "32M")
    pid = host.pid()
    content = bytearray(random.Random(4).randbytes(32 * MIB))
    content[16 * MIB :] = bytes(16 * MIB)
    writer = Writer(host.socket, "data")
    with writer.connection:
        for at in range(0, 16 * MIB, MIB):
            writer.write(at, content[at : at + MIB])
        host.program.run("volume", "snapshot", "data", "--wait")
        run("sync", "-f", filler.parent)
        fill(filler)
        # What was changed before, and what never was: of some blocks the mark is there, of others it is not.
        refused = {at: writer.attempt(at, bytes(4096)) for at in range(0, 32 * MIB, MIB // 2)}
        assert set(refused.values()) <= {0, errno.ENOSPC}
        assert errno.ENOSPC in refused.values()
        for at in (at for at, error in refused.items() if not error):
            content[at : at + 4096] = bytes(4096)
        assert host.pid() == pid
        for verb, code in ((["volume", "show", "data"], 0), (["volume", "list"], 0), (["status"], 1)):
            assert "writes fail in " in host.program.run(*verb, code=code).stdout
        assert "No space left" in host.program.run("volume", "snapshot", "data", code=1).stderr
        now = tmp_path / "now.img"
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", host.nbd("data"), now)
        for at, error in refused.items():
            if not error:
                equal(now.read_bytes()[at : at + MIB // 2], content[at : at + MIB // 2])

        filler.unlink()
        run("sync", "-f", filler.parent)
        for at in range(0, 32 * MIB, MIB):
            content[at : at + MIB] = random.Random(at).randbytes(MIB)
            writer.write(at, content[at : at + MIB])
    assert host.pid() == pid
    host.program.run("volume", "snapshot", "data", "--wait")
    restored = tmp_path / "restored.img"
    host.program.run("restore", "data@latest", "--to", restored)
    equal(restored.read_bytes(), content)
