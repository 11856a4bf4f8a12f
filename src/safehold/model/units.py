"""Sizes, spans and times as people write them."""

from __future__ import annotations

import re
from datetime import datetime

__all__ = [
    "format_age",
    "format_count",
    "format_duration",
    "format_rate",
    "format_size",
    "format_time",
    "parse_size",
    "parse_span",
]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DAY = 86400
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def format_size(size: float) -> str:
    """1536 → `1.5 KiB`."""
    value, unit = float(size), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def format_count(number: int, noun: str, plural: str = "") -> str:
    """1274 and `file` → `1,274 files`; 1 → `1 file`. `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_rate(size: float, seconds: float) -> str:
    """Bytes in a time as bytes a second; a dash where no time passed."""
    return f"{format_size(size / seconds)}/s" if seconds > 0 else "–"


def format_duration(seconds: float) -> str:
    """75.2 → `1 min 15 s`; below a minute with one decimal."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_age(seconds: float) -> str:
    """Like `format_duration`, and from two days on in days: 300000 → `3 days`."""
    return format_duration(seconds) if seconds < 2 * _DAY else f"{seconds / _DAY:.0f} days"


def format_time(when: float) -> str:
    """Seconds since 1970 as local date and time, in the form that selectors take."""
    return datetime.fromtimestamp(when).strftime("%Y-%m-%dT%H:%M:%S")


def parse_size(text: str) -> int:
    """`100G`, `512K`, `1.5MiB`, `4096` → bytes, in powers of 1024. ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is no size: write 512K, 100G or a number of bytes")
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def parse_span(text: str) -> float:
    """`35d`, `26h`, `90m`, `2w`, `1y`, `30s` → seconds. ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdwy])", text.strip())
    if not match:
        raise ValueError(f"{text!r} is no span of time: write 26h, 35d or 12w")
    return float(match[1]) * _SPANS[match[2]]
