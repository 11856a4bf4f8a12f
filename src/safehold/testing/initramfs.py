"""The first file system of a guest: as much as it takes to see the host's, and to go over to it."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

__all__ = ["HOST", "SERVE", "SHARE", "write_initramfs"]

HOST, SHARE = "host", "share"
"""9p tags of the host's root, and of the folder that host and guest share: `/share` in the guest."""

SERVE = "serve"
"""The script in the shared folder that becomes the guest's first process."""

_INIT = """#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose HOST /host
mount -t tmpfs -o size=75% upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work overlay /root
for place in proc sys dev; do mount --move /$place /root/$place; done
mkdir -p /root/share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none SHARE /root/share
exec switch_root /root /bin/sh /share/SERVE
"""
"""The host's root never changes for the guest, so that it may be cached without asking; the shared folder may not be."""


def write_initramfs(path: Path, modules: Iterable[Path]) -> None:
    """Write the archive (cpio, as `initramfs-buffer-format` of the kernel's documents says); `modules` load in that order.

    RuntimeError where busybox is missing.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is missing: apt-get install busybox-static")
    init = _INIT.replace("HOST", HOST).replace("SHARE", SHARE).replace("SERVE", SERVE)
    with open(path, "wb") as archive:
        for folder in ("bin", "dev", "host", "modules", "proc", "root", "sys", "upper"):
            archive.write(_entry(folder, stat.S_IFDIR | 0o755, b""))
        archive.write(_entry("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()))
        archive.write(_entry("init", stat.S_IFREG | 0o755, init.encode()))
        for number, module in enumerate(modules):
            archive.write(_entry(f"modules/{number:03}-{module.name}", stat.S_IFREG | 0o644, module.read_bytes()))
        archive.write(_entry("TRAILER!!!", 0, b""))


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
