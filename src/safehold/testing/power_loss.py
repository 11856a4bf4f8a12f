"""What a directory holds after the power failed: the store's file-system calls replayed, with everything that was not synced dropped."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safehold.objects.local import SystemFileCalls

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Call", "RecordingCalls", "after_power_loss"]


@dataclass(frozen=True)
class Call:
    """One call: write, flush (fsync of a file), link, rename, unlink, mkdir or sync (fsync of a directory), or `promise` where the store told
    its caller that a put is done.
    """

    verb: str
    path: str
    target: str = ""
    data: bytes = b""


@dataclass
class RecordingCalls(SystemFileCalls):
    """Carries calls out and remembers them in order. What is synced is not taken from the names of calls: within `watching`, it is what
    `os.fsync` was called on.
    """

    calls: list[Call] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record the process's fsyncs meanwhile."""
        fsync = os.fsync

        def recorded(fd: int) -> None:
            fsync(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.synced(path, directory=stat.S_ISDIR(os.fstat(fd).st_mode))

        os.fsync = recorded  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = fsync

    def synced(self, path: str, *, directory: bool) -> None:
        """What stood at `path` was made durable: a directory's entries, or a file's bytes."""
        self._record(Call("sync" if directory else "flush", path))

    def _record(self, call: Call) -> None:
        with self._lock:
            self.calls.append(call)

    def promise(self, path: str, data: bytes) -> None:
        """A put of `path` returned."""
        self._record(Call("promise", path, data=data))

    def write_file(self, path: str, parts: Sequence[Buffer]) -> None:
        """See `objects.local.FileCalls`."""
        # Before, so that the flush inside comes after it.
        self._record(Call("write", path, data=b"".join(bytes(part) for part in parts)))
        super().write_file(path, parts)

    def link(self, source: str, target: str) -> None:
        """See `objects.local.FileCalls`."""
        super().link(source, target)
        self._record(Call("link", source, target))

    def rename(self, source: str, target: str) -> None:
        """See `objects.local.FileCalls`."""
        super().rename(source, target)
        self._record(Call("rename", source, target))

    def unlink(self, path: str) -> None:
        """See `objects.local.FileCalls`."""
        super().unlink(path)
        self._record(Call("unlink", path))

    def mkdir(self, path: str) -> None:
        """See `objects.local.FileCalls`."""
        super().mkdir(path)
        self._record(Call("mkdir", path))


@dataclass
class _File:
    """What a file holds, and what of that survives."""

    data: bytes
    durable: bytes = b""


def after_power_loss(calls: Sequence[Call], root: str) -> Iterator[tuple[int, dict[str, bytes], dict[str, bytes]]]:
    """For each prefix of the calls: its length, the files that survive a power cut then, and the files that were promised by then.

    A file survives where its entry and those of all directories above it, up to `root`'s parent, were synced after they were made. It is
    empty where its bytes were not synced.
    """
    here: dict[str, _File | None] = {os.path.dirname(root): None}
    durable: dict[str, _File | None] = dict(here)
    promised: dict[str, bytes] = {}
    for number, call in enumerate(calls, 1):
        if call.verb == "write":
            here[call.path] = _File(call.data)
        elif call.verb == "flush":
            file = here.get(call.path)
            if file is not None:
                file.durable = file.data
        elif call.verb == "link":
            here[call.target] = here[call.path]
        elif call.verb == "rename":
            here[call.target] = here.pop(call.path)
        elif call.verb == "unlink":
            here.pop(call.path, None)
            promised.pop(call.path, None)
        elif call.verb == "mkdir":
            here[call.path] = None
        elif call.verb == "sync":
            durable = {p: d for p, d in durable.items() if os.path.dirname(p) != call.path}
            durable |= {p: d for p, d in here.items() if os.path.dirname(p) == call.path}
        else:
            promised[call.path] = call.data
        yield (
            number,
            {p: file.durable for p, file in durable.items() if file is not None and _reachable(p, durable, root)},
            dict(promised),
        )


def _reachable(path: str, durable: dict[str, _File | None], root: str) -> bool:
    above = os.path.dirname(path)
    while above != os.path.dirname(root):
        if above not in durable:
            return False
        above = os.path.dirname(above)
    return True
