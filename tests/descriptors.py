"""Which files this process has open."""

from __future__ import annotations

import contextlib
import os


def opened(under: str = "") -> list[str]:
    """Paths of open files that begin so."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        # That of the listing itself is gone.
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [path for path in found if path.startswith(under)]
