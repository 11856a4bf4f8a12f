"""How many files this process may have open."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

__all__ = ["many_descriptors"]


@contextlib.contextmanager
def many_descriptors() -> Iterator[None]:
    """Inside, as many files can be open as this process may allow itself: the limit that it starts with is for programs that wait on
    descriptors with select(2), which takes none above 1023 (getrlimit(2)).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
