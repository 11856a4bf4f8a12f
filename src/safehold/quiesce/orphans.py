"""What may be held with nobody left to let go of it, as its owner and his watchdog were killed or gave up: by the watchdog's log."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
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
    """What lets go of each thing that somebody held, where neither he nor his watchdog is there to do it, or the watchdog has given up, unless it was
    let go of in a later capture. Empty where there is no log.
    """
    armed: dict[int, _Armed] = {}
    given_up: list[_Armed] = []
    for line in _lines(log):
        match line:
            case {"pid": int(pid), "time": int(at) | float(at), "owner": int(owner), "armed": [*what]}:
                armed[pid] = _Armed(at, owner, [str(one) for one in what])
            case {"pid": int(pid), "time": int(at) | float(at), "steps": [*steps]}:
                armed.pop(pid, None)
                released = _in_state(steps, "left", "released")
                for one in (*armed.values(), *given_up):
                    one.what = [what for what in one.what if what not in released]
                # Its last word: what it could not let go of is held whoever lives by now.
                given_up.append(_Armed(at, 0, _in_state(steps, "held")))
    killed = [one for pid, one in armed.items() if not _runs(pid) and not _runs(one.owner)]
    booted = _booted()
    return list(dict.fromkeys(what for one in (*given_up, *killed) if one.at > booted for what in one.what))


def _in_state(steps: Sequence[Any], *states: str) -> list[str]:
    return [str(step.get("what")) for step in steps if isinstance(step, dict) and step.get("state") in states]


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
