"""What the disks in the fixture vaults hold."""

from __future__ import annotations

import os
import random
from pathlib import Path

_TEXT = b"the quick brown fox jumps over the lazy dog\n" * 400
FIRST = _TEXT + bytes(40_000) + random.Random(1).randbytes(20_000) + b"tail"
SECOND = _TEXT + bytes(40_000) + random.Random(2).randbytes(8_000) + random.Random(1).randbytes(12_000) + b"longer tail"

GROUP = {"left": _TEXT[:9000] + b"left", "right": bytes(12_288) + _TEXT[:5000]}
"""Two disks in one point."""

STREAM = b"".join(b"%06d some line of a dump\n" % n for n in range(20_000))
DATABASE = [b"".join(b"%05d %d\n" % (n, seed) * 40 for n in range(300)) for seed in range(3)]
"""Three states of a disk, of which the first was expired and pruned."""


def tree(top: Path) -> None:
    """A tree with every form of content, in more than one page. Needs no root."""
    for n in range(300):
        folder = top / "many" / f"{n % 20:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"small-{n:03}").write_bytes(b"%d\n" % n)
    (top / "empty").touch()
    (top / "text").write_bytes(_TEXT * 20)
    with (top / "holes").open("wb") as file:
        for n in range(40):
            file.seek(n * 65_536)
            file.write(b"part %d\n" % n * 600)
    os.link(top / "text", top / "many/hard link")
    os.symlink("nowhere/at/all", top / "link")
    (top / "nothing in it").mkdir()
    os.setxattr(top / "text", "user.note", b"\0\xff")
    os.chmod(top / "empty", 0o4751)
    for path in sorted(top.rglob("*")):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789), follow_symlinks=False)
