"""A control group in which a process has so much memory and no swap."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["memory_group"]

_TOP = Path("/sys/fs/cgroup")
_TRIES = 500


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """The directory of a control group of `limit` bytes, page cache included: of version 2 where it has the memory controller, else of version 1.

    SystemExit where none can be made: it takes root.
    """
    if os.geteuid():
        raise SystemExit("bench.index measures under a memory limit, in a control group: run it as root")
    second = (_TOP / "cgroup.controllers").exists() and "memory" in (_TOP / "cgroup.controllers").read_text().split()
    path = (_TOP if second else _TOP / "memory") / f"safehold-bench-{os.getpid()}"
    try:
        if second:
            (_TOP / "cgroup.subtree_control").write_text("+memory")
        path.mkdir()
    except OSError as error:
        raise SystemExit(f"no control group with a memory limit can be made here: {error}") from error
    try:
        limits = ("memory.max", "memory.swap.max") if second else ("memory.limit_in_bytes", "memory.swappiness")
        for name, value in zip(limits, (limit, 0), strict=True):
            # A kernel without swap accounting has no file for it.
            if (path / name).exists():
                (path / name).write_text(str(value))
        yield path
    finally:
        for _ in range(_TRIES):
            try:
                path.rmdir()
            except OSError:
                # Busy until the last process in it is gone.
                time.sleep(0.01)
            else:
                break
