"""What is mounted where, from /proc/PID/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mounted", "major_minor", "mount_named", "mount_of", "mounts"]

_PER_MOUNT = {
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "nosymfollow": 0x100,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 1 << 21,
}
"""Without `ro`: given to mount(2) for one mount of a file system, it would make all of the file system read-only."""
_STRICTATIME = 1 << 24
_SUPER = {"ro": 0x1, "sync": 0x10, "mand": 0x40, "dirsync": 0x80, "lazytime": 1 << 25}
_NO_OPTION = {"rw", "seclabel"}
"""Shown among the options, and not to be given as one."""

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount: `device` is the file system's number (`major:minor`), `root` what of it is mounted, `shared` whether mounts below it
    are seen in other namespaces.
    """

    number: int
    parent: int
    device: str
    root: str
    path: str
    options: tuple[str, ...]
    shared: bool
    type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def flags(self) -> int:
        """The flags of mount(2) with which it was mounted; that this one mount may be read-only is none of them (see `read_only_view`)."""
        flags = sum(_PER_MOUNT.get(word, 0) for word in self.options)
        flags |= sum(_SUPER.get(word, 0) for word in self.super_options)
        return flags if flags & (_PER_MOUNT["noatime"] | _PER_MOUNT["relatime"]) else flags | _STRICTATIME

    @property
    def read_only_view(self) -> bool:
        """True where nothing can be written by way of this mount, while the file system itself is writable."""
        return "ro" in self.options and "ro" not in self.super_options

    @property
    def data(self) -> str:
        """The options of the file system itself, as mount(2) takes them."""
        return ",".join(word for word in self.super_options if word not in _SUPER and word not in _NO_OPTION)


def major_minor(device: int) -> str:
    """A device number as the kernel writes it in its tables."""
    return f"{os.major(device)}:{os.minor(device)}"


def _plain(word: str) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), word).encode("latin-1"))


def mounts(process: int | None = None) -> list[Mounted]:
    """Everything that is mounted here, or where that process is, in the order of mounting. OSError where there is none of that number any more."""
    found = []
    for line in Path(f"/proc/{process or 'self'}/mountinfo").read_text("latin-1").splitlines():
        before, _, after = line.partition(" - ")
        number, parent, device, root, path, options, *more = before.split(" ")
        kind, source, super_options = after.split(" ", 2)
        found.append(
            Mounted(
                number=int(number),
                parent=int(parent),
                device=device,
                root=_plain(root),
                path=_plain(path),
                options=tuple(options.split(",")),
                shared=any(word.startswith("shared:") for word in more),
                type=kind,
                source=_plain(source),
                super_options=tuple(super_options.split(",")),
            )
        )
    return found


def mount_of(path: str) -> Mounted:
    """The mount that `path` lies on. OSError where there is no such path.

    Not by the device number of the file: on btrfs every subvolume has one of its own.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    number = next(int(line.split()[1]) for line in info.splitlines() if line.startswith("mnt_id:"))
    for mounted in mounts():
        if mounted.number == number:
            return mounted
    raise FileNotFoundError(2, "its file system is not mounted in this namespace", path)


def mount_named(path: str) -> Mounted | None:
    """The mount that an absolute path without symbolic links lies on, by its words alone: its file system, which may hang, is not asked."""
    found = None
    for mounted in mounts():
        # The later one hides the earlier.
        below = path.startswith(mounted.path.rstrip("/") + "/") or path == mounted.path
        if below and (found is None or len(mounted.path) >= len(found.path)):
            found = mounted
    return found
