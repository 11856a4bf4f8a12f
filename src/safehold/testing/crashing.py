"""Runs the command line and kills it (SIGKILL, to itself) at a chosen moment of a chosen change of the store.

    python -m safehold.testing.crashing WHICH WHEN REPORT ARGUMENT...

WHICH is the number of a change, from 1, or a regular expression: then it is the first change whose path or name has it somewhere. WHEN is
before, during or after. With a local store a change is one file-system call (half of a file's bytes are written in `during`), with any other
store one put or delete (the request is under way in `during`). REPORT is a file that takes a line for each change of a run that came to its
end: `whole`, or `parts` for a change that can be half done.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safehold.cli.main import run
from safehold.compose import wiring
from safehold.objects.local import LocalStore, SystemFileCalls
from safehold.objects.location import open_store
from safehold.ports.store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["main"]


class _Trigger:
    """Counts changes and kills the process at the chosen one."""

    def __init__(self, which: str, when: str) -> None:
        self._which, self._when = which, when
        self.changes: list[str] = []
        self._lock = threading.Lock()

    def change(self, name: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Carry out a change, or die before, after, or having carried out half of it."""
        with self._lock:
            self.changes.append("parts" if half else "whole")
            chosen = (
                len(self.changes) == int(self._which) if self._which.isdigit() else bool(re.search(self._which, name))
            )
            if chosen and self._when == "before":
                _die()
            if chosen and self._when == "during" and half:
                half()
                _die()
            result = act()
            if chosen:
                _die()
            return result


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _KillingCalls(SystemFileCalls):
    """File-system calls that count as changes."""

    def __init__(self, trigger: _Trigger) -> None:
        self._trigger = trigger

    def write_file(self, path: str, parts: Sequence[Buffer]) -> None:
        def half() -> None:
            data = b"".join(bytes(part) for part in parts)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, data[: len(data) // 2])

        self._trigger.change(path, lambda: super(_KillingCalls, self).write_file(path, parts), half)

    def link(self, source: str, target: str) -> None:
        self._trigger.change(target, lambda: super(_KillingCalls, self).link(source, target))

    def unlink(self, path: str) -> None:
        self._trigger.change(path, lambda: super(_KillingCalls, self).unlink(path))

    def mkdir(self, path: str) -> None:
        self._trigger.change(path, lambda: super(_KillingCalls, self).mkdir(path))

    def sync_directory(self, path: str) -> None:
        self._trigger.change(path, lambda: super(_KillingCalls, self).sync_directory(path))


class _KillingStore:
    """Puts and deletes of any store that count as changes."""

    def __init__(self, inner: Store, trigger: _Trigger) -> None:
        self._inner, self._trigger = inner, trigger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _under_way(self, call: Callable[[], Any]) -> None:
        """Start the request and leave it some milliseconds, so that the server has seen a part of it or all."""
        threading.Thread(target=call, daemon=True).start()
        time.sleep(0.003)

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Any:
        def act() -> Any:
            return self._inner.put(name, parts, create_only=create_only)

        return self._trigger.change(name, act, lambda: self._under_way(act))

    def delete(self, name: str, version: str | None = None) -> None:
        def act() -> None:
            self._inner.delete(name, version)

        self._trigger.change(name, act, lambda: self._under_way(act))


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    which, when, report, *rest = arguments
    trigger = _Trigger(which, when)

    def opened(url: str) -> Store:
        if "://" not in url:
            return LocalStore(url, _KillingCalls(trigger))
        store: Store = _KillingStore(open_store(url), trigger)
        return store

    vars(wiring)["open_store"] = opened
    code = run(rest)
    Path(report).write_text("\n".join(trigger.changes))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
