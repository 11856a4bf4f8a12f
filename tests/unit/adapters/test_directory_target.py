"""Restored files stay below their target, whatever lies in the way."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.files.destination import open_directory
from safehold.adapters.files.target import DirectoryTarget
from safehold.adapters.files.walk import read_attributes
from safehold.model.errors import TargetError
from safehold.model.files import Entry


def entry(name: bytes, mode: int, **more: object) -> Entry:
    fields = {
        "name": name,
        "mode": mode,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "size": 4,
        "mtime": 0,
        "ctime": 0,
        "ino": 1,
    }
    return Entry(**(fields | more))  # type: ignore[arg-type]


FILE = entry(b"file", stat.S_IFREG | 0o644)
LINK = entry(b"link", stat.S_IFLNK | 0o777, size=0, target=b"somewhere")


def put(target: DirectoryTarget, path: bytes) -> None:
    target.write_file(path, FILE, iter([(0, b"data")]))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "file").write_text("untouched")
    return place


@pytest.mark.parametrize("existing", [False, True])
def test_links_in_the_way(tmp_path: Path, outside: Path, existing: bool) -> None:
    top = tmp_path / "top"
    with open_directory(str(top), existing=existing) as target:
        # Links that a hostile user of the directory makes while the restore runs.
        (top / "dir").symlink_to(outside)
        (top / "file").symlink_to(outside / "file")
        (top / "gone").symlink_to(outside / "new")
        put(target, b"dir/file")
        put(target, b"file")
        put(target, b"gone")
        target.make(b"dir/link", LINK)
        target.link(b"file2", b"dir/file")
        target.set_attributes(b"dir", entry(b"dir", stat.S_IFDIR | 0o700))
        target.set_attributes(b"file", entry(b"file", stat.S_IFREG | 0o600))
    assert [(p.name, p.read_text(), p.stat().st_mode & 0o777) for p in outside.iterdir()] == [
        ("file", "untouched", 0o644)
    ]
    if existing:
        assert (top / "dir/file").read_text() == (top / "file").read_text() == "data"
    else:
        assert len(target.problems) >= 3


def test_a_race_for_a_directory(tmp_path: Path, outside: Path) -> None:
    """Somebody swaps a directory for a link as fast as possible; nothing lands outside."""
    top = tmp_path / "top"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(top / "dir", top / "old")
                os.symlink(outside, top / "dir")
                os.unlink(top / "dir")
                os.rename(top / "old", top / "dir")
            except OSError:
                continue

    with open_directory(str(top), existing=True) as target:
        (top / "dir").mkdir()
        thread = threading.Thread(target=swap)
        thread.start()
        for n in range(300):
            target._open.clear()
            target._open[b""] = target._root
            try:
                put(target, b"dir/new %d" % n)
            except TargetError:
                continue
        stop.set()
        thread.join()
    assert [p.name for p in outside.iterdir()] == ["file"]


def test_a_full_disk_ends_the_restore(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    try:
        with pytest.raises(TargetError, match="No space left"), open_directory(str(place), existing=False) as target:
            target.write_file(b"file", FILE, iter([(n * 4096, b"x" * 4096) for n in range(64)]))
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("mode", [0o400, 0o444, 0o640, 0o666, 0o4755, 0o2755, 0o1777])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("existing", [False, True])
def test_permissions_do_not_depend_on_the_mask(tmp_path: Path, mode: int, umask: int, existing: bool) -> None:
    wanted = entry(b"file", stat.S_IFREG | mode)
    before = os.umask(umask)
    try:
        with open_directory(str(tmp_path / "top"), existing=existing) as target:
            target.write_file(b"file", wanted, iter([(0, b"data")]))
    finally:
        os.umask(before)
    assert (tmp_path / "top/file").stat().st_mode == wanted.mode
    assert target.problems == []


@pytest.mark.parametrize("reached_by", ["owner", "group of the directory", "attributes", "replacing"])
def test_nobody_else_reads_a_file_that_is_not_ready(tmp_path: Path, reached_by: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    top = tmp_path / "top"
    top.mkdir()
    more: dict[str, object] = {}
    if reached_by == "owner":
        more["gid"] = 12345
    elif reached_by == "group of the directory":
        os.chown(top, -1, 12345)
        top.chmod(0o2755)
    elif reached_by == "attributes":
        more["xattrs"] = {b"user.note": b"x"}
    seen = []

    def data() -> Iterator[tuple[int, bytes]]:
        yield 0, b"data"
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in top.iterdir())

    with open_directory(str(top), existing=reached_by == "replacing") as target:
        target.write_file(b"file", entry(b"file", stat.S_IFREG | 0o640, **more), data())
    assert seen == [0o600]
    assert stat.S_IMODE((top / "file").stat().st_mode) == 0o640
    assert (top / "file").stat().st_gid == more.get("gid", os.getegid())


def test_nobody_gets_the_rights_of_an_owner_who_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever restores without privileges owns what was root's: a program that is setuid would be so for them."""

    def refused(*words: object, **more: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "chown", refused)
    program = entry(b"file", stat.S_IFREG | 0o6755, uid=12345)
    with open_directory(str(tmp_path / "top"), existing=False) as target:
        target.write_file(b"file", program, iter([(0, b"data")]))
        target.make(b"pipe", entry(b"pipe", stat.S_IFIFO | 0o6644, uid=12345, size=0))
    assert [stat.S_IMODE((tmp_path / "top" / name).stat().st_mode) for name in ("file", "pipe")] == [0o755, 0o644]
    assert sum("setuid" in str(problem) for problem in target.problems) == 2


def test_one_attribute_that_cannot_be_read_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    for name in ("user.a", "user.b", "user.c"):
        os.setxattr(path, name, name.encode())
    read = os.getxattr

    def failing(path: object, name: str, **more: object) -> bytes:
        if name == "user.b":
            raise OSError(errno.ENODATA, "gone")
        return read(path, name, **more)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "getxattr", failing)
    assert read_attributes(bytes(path), follow=False) == {b"user.a": b"user.a", b"user.c": b"user.c"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_every_file_system_below_is_made_durable(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", top / "mounted"], check=True)
    try:
        with open_directory(str(top), existing=True) as target:
            put(target, b"mounted/file")
            assert len(target._file_systems) == 2
    finally:
        subprocess.run(["umount", "-l", top / "mounted"], check=True)
