"""When something is due."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

__all__ = ["Schedule", "due_at", "is_due", "parse_schedule"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT = re.compile(r"(?:(mon|tue|wed|thu|fri|sat|sun)\s+)?(\d\d):(\d\d)")


@dataclass(frozen=True)
class Schedule:
    """Every so many seconds; or each day, or one day of the week (0 is Monday), at a time of day by the local clock."""

    every: float = 0.0
    hour: int = 0
    minute: int = 0
    weekday: int | None = None


def parse_schedule(text: str) -> Schedule:
    """`02:30` (each day) or `sun 03:00`. ValueError for anything else."""
    match = _AT.fullmatch(text.strip().lower())
    if not match or int(match[2]) > 23 or int(match[3]) > 59:
        raise ValueError(f"{text!r} is no time of day: write 02:30, or sun 03:00")
    return Schedule(hour=int(match[2]), minute=int(match[3]), weekday=_DAYS.index(match[1]) if match[1] else None)


def due_at(schedule: Schedule, last: float | None, now: float, zone: tzinfo | None = None) -> float:
    """When what was last started at `last` is due next; not after `now` where it is due already. What never was, is due now."""
    if last is None or last > now + 60:
        # A start in the future was written by a clock that was wrong.
        return now
    if schedule.every:
        return last + schedule.every
    here = datetime.fromtimestamp(last, zone)
    at = here.replace(hour=schedule.hour, minute=schedule.minute, second=0, microsecond=0)
    if schedule.weekday is not None:
        at += timedelta(days=(schedule.weekday - at.weekday()) % 7)
    while at.timestamp() <= last:
        at += timedelta(days=1 if schedule.weekday is None else 7)
    return at.timestamp()


def is_due(schedule: Schedule, last: float | None, now: float, zone: tzinfo | None = None) -> bool:
    """True where the last start was before the newest time that the schedule names, or never. A machine that was off catches up once."""
    if last is None or last > now + 60:
        # A start in the future was written by a clock that was wrong.
        return True
    if schedule.every:
        return now - last >= schedule.every
    here = datetime.fromtimestamp(now, zone)
    at = here.replace(hour=schedule.hour, minute=schedule.minute, second=0, microsecond=0)
    if at > here:
        at -= timedelta(days=1)
    if schedule.weekday is not None:
        at -= timedelta(days=(at.weekday() - schedule.weekday) % 7)
    return last < at.timestamp()
