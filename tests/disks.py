"""Disk images for tests."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

BLOCK = 512 * 1024


def make_disk(path: Path, pattern: str, seed: int = 1) -> Path:
    """A sparse raw image: one block for each letter; `.` is a hole, `0` written zeros, `t` text, any other letter random bytes of its own."""
    with path.open("wb") as file:
        for number, letter in enumerate(pattern):
            file.seek(number * BLOCK)
            if letter == "0":
                file.write(bytes(BLOCK))
            elif letter == "t":
                file.write((b"the same line again, number %d\n" % number * BLOCK)[:BLOCK])
            elif letter != ".":
                file.write(random.Random(f"{seed} {letter}").randbytes(BLOCK))
        file.truncate(len(pattern) * BLOCK)
    return path


def make_ext4(path: Path, size: str, content: Path) -> Path:
    """An ext4 image that holds the directory `content`."""
    with path.open("wb") as file:
        file.truncate(int(size) * 1024 * 1024)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", "-F", "-d", str(content), str(path)], check=True)
    return path


def same(left: Path, right: Path) -> None:
    """cmp says that two files are equal."""
    subprocess.run(["cmp", str(left), str(right)], check=True)
