"""Small files of what this machine remembers, each replaced as a whole: whoever reads one finds the old or the new."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

__all__ = ["keep", "recall"]

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
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
            out.write(data)
        os.replace(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
