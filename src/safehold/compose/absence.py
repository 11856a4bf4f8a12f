"""For how long nobody served volumes that are attached: past the time that their devices wait, requests have failed, and what lies on them knows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from safehold.adapters.linux.attachment import RECONNECT, Attachment
from safehold.model.remembered import recall
from safehold.model.units import format_duration

__all__ = ["BEAT", "Absences"]

BEAT = 2.0
"""Seconds between two signs of life of the service."""


class _Doubt(msgspec.Struct, frozen=True):
    """For how many seconds nobody served the device of a volume that was made at that time."""

    made: float
    seconds: float


class Absences:
    """What is remembered in the run directory. Times are seconds of the monotonic clock, which all processes of one boot share."""

    def __init__(self, run: Path) -> None:
        self._alive, self._doubts = run / "volumes.alive", run / "volumes.doubts"

    def beat(self) -> None:
        """The service is there."""
        with contextlib.suppress(OSError):
            self._alive.write_text(str(time.monotonic()))

    def begin(self, attached: Sequence[Attachment]) -> None:
        """The service is there again: devices that waited for it longer than they do are remembered."""
        try:
            away = time.monotonic() - float(self._alive.read_text())
        except (OSError, ValueError):
            away = 0.0
        known = recall(self._doubts, dict[str, _Doubt], {})
        fresh = {one.volume: _Doubt(one.made, away) for one in attached if away > RECONNECT}
        with contextlib.suppress(OSError):
            self._doubts.write_bytes(msgspec.json.encode(known | fresh))
        self.beat()

    def problem(self, attached: Attachment) -> str:
        """Why an attached device may have given errors, or nothing."""
        doubt = recall(self._doubts, dict[str, _Doubt], {}).get(attached.volume)
        if doubt is None or doubt.made != attached.made:
            return ""
        where = attached.mount or "whatever is mounted of it"
        return (
            f"nobody served {attached.device} for {format_duration(doubt.seconds)}, and requests wait for {RECONNECT} s: some may have failed "
            f"→ unmount {where}, safehold volume detach {attached.volume}, attach it again, fsck"
        )
