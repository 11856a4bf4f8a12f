"""Processes that write small files do it as the restore itself would, and what goes wrong in them is told."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from safehold.adapters.files.destination import open_directory
from safehold.adapters.files.walk import DirectoryFd
from safehold.adapters.files.writers import FileWriters
from safehold.model.errors import TargetError
from safehold.ports.tree import Piece
from tests.unit.adapters.test_directory_target import entry

DATA = memoryview(b"".join(b"%04d" % n for n in range(1000)))


def pieces(directory: bytes, count: int = 1000, mode: int = 0o664) -> list[Piece]:
    """Files named after the four bytes in each."""
    return [
        Piece(directory + b"/%04d" % n, entry(b"%04d" % n, stat.S_IFREG | mode, mtime=n), n * 4) for n in range(count)
    ]


OTHERS: set[str] = set()  # children that were there before a test: servers that other tests go on using


def children() -> list[str]:
    """The processes that the test in hand has started."""
    return sorted(set(all_children()) - OTHERS)


def all_children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += (task / "children").read_text().split()
    return found


@pytest.fixture
def top(tmp_path: Path) -> Path:
    OTHERS.clear()
    OTHERS.update(all_children())
    place = tmp_path / "top"
    place.mkdir()
    return place


@pytest.fixture
def writers(top: Path) -> Iterator[FileWriters]:
    root = DirectoryFd(os.open(top, os.O_RDONLY | os.O_DIRECTORY))
    some = FileWriters(root, str(top), replace=False, count=2)
    yield some
    some.close()
    assert children() == []


@pytest.mark.parametrize("existing", [False, True])
def test_many_files_are_written_by_processes(top: Path, existing: bool) -> None:
    with open_directory(str(top), existing=existing) as target:
        assert children() == []
        for n in range(6):
            target.write_pieces(DATA, pieces(b"a/%d" % n))
        assert len(children()) == min(len(os.sched_getaffinity(0)), 4)
        target.settle()
        assert target.problems == []
    assert children() == []
    for n in range(6):
        for path in (top / f"a/{n}").iterdir():
            status = path.stat()
            assert path.read_text() == path.name
            assert (status.st_mode, status.st_mtime_ns) == (stat.S_IFREG | 0o664, int(path.name))
        assert len(list((top / f"a/{n}").iterdir())) == 1000


def test_what_cannot_be_written_is_told(top: Path, writers: FileWriters, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (top / "a").mkdir()
    (top / "a/0007").symlink_to(tmp_path / "outside/new")
    (top / "b").symlink_to(tmp_path / "outside")
    assert writers.write(DATA, pieces(b"a"))
    assert writers.write(DATA, pieces(b"b", 2))
    told = sorted(writers.settle())
    assert [str(problem) for problem in told] == [
        "a/0007: not restored (File exists)",
        "b/0000: not restored (Not a directory)",
        "b/0001: not restored (Not a directory)",
    ]
    assert [(problem.absent, problem.unwritten) for problem in told] == [(True, 4)] * 3
    assert writers.settle() == []
    assert len(list((top / "a").iterdir())) == 1000
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_list_that_is_too_long_is_left_to_the_caller(top: Path, writers: FileWriters) -> None:
    large = entry(b"large", stat.S_IFREG | 0o600, xattrs={b"user.large": bytes(5 << 20)})
    assert not writers.write(DATA, [Piece(b"large", large, 0)])
    writers.settle()
    assert list(top.iterdir()) == []


def restore_many(top: Path, disturb: Callable[[int], None]) -> None:
    """A restore of a hundred thousand files; `disturb` is called with the number of thousands so far."""
    with open_directory(str(top), existing=False) as target:
        for n in range(100):
            target.write_pieces(DATA, pieces(b"%d" % n))
            disturb(n)


def test_a_killed_process_fails_the_restore(top: Path) -> None:
    def kill(n: int) -> None:
        if n == 5:
            for child in children():
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(TargetError, match="ended by signal 9") as raised:
        restore_many(top, kill)
    assert "--delta" in raised.value.remedy
    assert children() == []


def test_a_process_that_is_asked_to_stop_finishes(top: Path, writers: FileWriters) -> None:
    for n in range(20):
        assert writers.write(DATA, pieces(b"%d" % n))
        if n > 2:
            for child in children():
                os.kill(int(child), signal.SIGTERM)
    assert writers.settle() == []
    assert sum(len(names) for _, _, names in os.walk(top)) == 20_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_ends_the_restore(top: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9M", "none", top], check=True)
    try:
        with pytest.raises(TargetError, match="No space left") as raised:
            restore_many(top, lambda n: None)
        assert raised.value.on.startswith(f"{top}/")
        assert "make room" in raised.value.remedy
    finally:
        subprocess.run(["umount", "-l", top], check=True)
    assert children() == []


def test_a_restore_that_fails_leaves_no_process(top: Path) -> None:
    seen = []

    def stop(n: int) -> None:
        seen.append(len(children()))
        if n == 4:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        restore_many(top, stop)
    assert max(seen) > 0
    assert children() == []
