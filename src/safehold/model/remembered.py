"""Small files of what this machine remembers, each replaced as a whole: whoever reads one finds the old or the new."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

__all__ = ["keep", "recall", "taking_turns"]

_T = TypeVar("_T")


def recall(path: Path, type_: type[_T], nothing: _T) -> _T:
    """What was kept there as JSON; `nothing` where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return nothing


def keep(path: Path, data: bytes) -> None:
    """Put `data` in the place of what is there, for this user's eyes only. OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
            out.write(data)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


@contextlib.contextmanager
def taking_turns(path: Path) -> Iterator[None]:
    """Whoever changes what is kept there, knowing what it was, does so alone. Where there is no room for a lock all go on without."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
