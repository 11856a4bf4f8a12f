"""What the disks in the fixture vaults hold."""

from __future__ import annotations

import random

_TEXT = b"the quick brown fox jumps over the lazy dog\n" * 400
FIRST = _TEXT + bytes(40_000) + random.Random(1).randbytes(20_000) + b"tail"
SECOND = _TEXT + bytes(40_000) + random.Random(2).randbytes(8_000) + random.Random(1).randbytes(12_000) + b"longer tail"
