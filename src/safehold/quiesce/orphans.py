"""What a watchdog and its owner may have left held, having been killed both: by the watchdog's log."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["may_be_held"]

_TAIL = 256 * 1024
"""Bytes of the log's end that are looked at: thousands of captures."""


@dataclass
class _Armed:
    """What a watchdog was to let go of: armed when, in seconds since 1970, by which process."""

    at: float
    owner: int
    what: list[str]


def may_be_held(log: Path) -> list[str]:
    """What lets go of each thing that somebody held, where neither he nor his watchdog is there to do it, unless it was let go of in a later
    capture. Empty where there is no log.
    """
    armed: dict[int, _Armed] = {}
    for line in _lines(log):
        match line:
            case {"pid": int(pid), "time": int(at) | float(at), "owner": int(owner), "armed": [*what]}:
                armed[pid] = _Armed(at, owner, [str(one) for one in what])
            case {"pid": int(pid), "steps": [*steps]}:
                armed.pop(pid, None)
                released = {str(step.get("what")) for step in steps if step.get("state") != "held"}
                for one in armed.values():
                    one.what = [what for what in one.what if what not in released]
    booted = _booted()
    left = [one for pid, one in armed.items() if one.at > booted and not _runs(pid) and not _runs(one.owner)]
    return list(dict.fromkeys(what for one in left for what in one.what))


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _booted() -> float:
    """When, in seconds since 1970, by this machine's clock."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def _runs(process: int) -> bool:
    """True where it is still one of ours: numbers are given out again."""
    try:
        return b"safehold" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
