"""For how long nobody served volumes that are attached: past the time that their devices wait, requests have failed, and what lies on them knows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from safehold.adapters.linux.attachment import RECONNECT, Attachment
from safehold.model.remembered import keep, recall
from safehold.model.units import format_duration

__all__ = ["BEAT", "Absences"]

BEAT = 2.0
"""Seconds between two signs of life of the service."""


class _Doubt(msgspec.Struct, frozen=True):
    """For how many seconds nobody served the device of a volume that was made at that time; None where nobody knows."""

    made: float
    seconds: float | None


class Absences:
    """What is remembered in the run directory. Times are seconds of the monotonic clock, which all processes of one boot share."""

    def __init__(self, run: Path) -> None:
        self._alive, self._doubts = run / "volumes.alive", run / "volumes.doubts"
        self._unwritten: dict[str, _Doubt] = {}

    def beat(self) -> None:
        """The service is there. Nothing says so before what it found is on record: the next one would not find it any more."""
        with contextlib.suppress(OSError):
            if self._unwritten:
                known = recall(self._doubts, dict[str, _Doubt], {})
                keep(self._doubts, msgspec.json.encode(known | self._unwritten))
                self._unwritten = {}
            keep(self._alive, str(time.monotonic()).encode())

    def begin(self, attached: Sequence[Attachment]) -> None:
        """The service is there again: devices that waited for it longer than they do, or nobody knows how long, are remembered."""
        away = self._away()
        if away is None or away > RECONNECT:
            self._unwritten = {one.volume: _Doubt(one.made, away) for one in attached}
        self.beat()

    def _away(self) -> float | None:
        """For how long nobody was there; None where that is not told."""
        try:
            away = time.monotonic() - float(self._alive.read_text())
        except (OSError, ValueError):
            return None
        # One that is yet to come was written before the machine started.
        return away if away >= 0 else None

    def problem(self, attached: Attachment) -> str:
        """Why an attached device may have given errors, or nothing."""
        doubt = recall(self._doubts, dict[str, _Doubt], {}).get(attached.volume)
        if doubt is None or doubt.made != attached.made:
            return ""
        where = attached.mount or "whatever is mounted of it"
        span = "for an unknown time" if doubt.seconds is None else f"for {format_duration(doubt.seconds)}"
        return (
            f"nobody served {attached.device} {span}, and requests wait for {RECONNECT} s: some may have failed "
            f"→ unmount {where}, safehold volume detach {attached.volume}, attach it again, fsck"
        )
