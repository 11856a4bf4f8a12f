"""Control groups for tests, of version 2 or of version 1."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

_NUMBERS = itertools.count()


def _tops() -> dict[str, Path]:
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found["v2"] = Path(before.split()[4])
        elif kind == "cgroup" and "memory" in options.split(","):
            found["memory"] = Path(before.split()[4])
    return found


def _remove(path: Path) -> None:
    """Busy until the last of it is gone."""
    for inner in [p for p in path.iterdir() if p.is_dir()]:
        _remove(inner)
    for _ in range(1000):
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return
    path.rmdir()


class ControlGroup:
    """A group of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def plain(cls) -> Iterator[ControlGroup]:
        """Of version 2, so that it can be killed as a whole."""
        yield from cls._made(_tops()["v2"])

    @classmethod
    @contextlib.contextmanager
    def memory(cls, limit: int) -> Iterator[ControlGroup]:
        """One in which no more than `limit` bytes of memory can be used."""
        tops = _tops()
        for group in cls._made(tops.get("memory") or tops["v2"]):
            old = group.path / "memory.limit_in_bytes"
            (old if old.exists() else group.path / "memory.max").write_text(str(limit))
            yield group

    @classmethod
    def _made(cls, top: Path) -> Iterator[ControlGroup]:
        path = top / f"safehold-test-{os.getpid()}-{next(_NUMBERS)}"
        path.mkdir()
        try:
            yield cls(path)
        finally:
            _remove(path)

    def join(self) -> None:
        """Put the calling process in."""
        (self.path / "cgroup.procs").write_text("0")

    def kill(self) -> None:
        """End everything in it at once."""
        (self.path / "cgroup.kill").write_text("1")
