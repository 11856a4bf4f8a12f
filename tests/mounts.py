"""Loop file systems for tests that freeze: whatever happens to the test, they thaw."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

FITHAW = 0xC0045878
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,root_owner=0:0"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
SIZE = {"ext4": 64 << 20, "xfs": 300 << 20, "btrfs": 128 << 20}


def thaw(where: Path) -> bool:
    """Thaw once; whether it was frozen."""
    fd = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """The image as a loop device."""
    device = subprocess.run(
        ["losetup", "-f", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def _unmount(where: Path) -> None:
    """Busy for as long as a process that is about to end has something open there."""
    for _ in range(1000):
        done = subprocess.run(["umount", where], capture_output=True, text=True, check=False)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        time.sleep(0.01)
    subprocess.run(["umount", where], check=True)


@contextlib.contextmanager
def mounted(place: Path, kind: str, options: str = "defaults", size: int = 0) -> Iterator[Path]:
    """A fresh file system of that kind in `place`, mounted on `place/on`."""
    image, where = place / "image", place / "on"
    where.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(size or SIZE[kind])
    subprocess.run([*MAKE[kind], image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", f"loop,{options}", image, where], check=True)
    # Should this process be killed, its end of the pipe closes, and the shell thaws.
    with subprocess.Popen(
        ["sh", "-c", 'cat; while fsfreeze --unfreeze "$0"; do :; done', where],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    ):
        try:
            yield where
        finally:
            while thaw(where):
                pass
            _unmount(where)
