"""What a volume's own files fail at: said once in the log, and shown for as long as it lasts."""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Doing", "Told", "Troubles"]

_QUIET = 60.0
"""Seconds without another failure after which what goes well again is no trouble any more. A disk that is full still takes what needs no room, so one
success says little; and a guest that has made its file system read-only has an operator who is to learn why.
"""


class Told(OSError):
    """An error of which whoever raises it has told the operator already, in words of its own."""


class Doing(enum.StrEnum):
    """What may fail, each by itself."""

    READING = "reads"
    WRITING = "writes"
    FILLING = "writes of what is filled in"
    FLUSHING = "flushes"
    FOLDING = "moves of what was written beside the content"


@dataclass
class _Trouble:
    last: float
    texts: dict[int, str] = field(default_factory=dict)
    """By errno, in the order in which they were met."""


class Troubles:
    """Thread-safe. Nobody asks for it where all is well: `now` is empty then."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """The files lie in that directory."""
        self._directory, self._clock = directory, clock
        self._lock = threading.Lock()
        self.now: dict[Doing, _Trouble] = {}
        self.log: Callable[[str], None] = lambda text: None
        """Is told once of each thing that begins to fail, once of each further error, and once that it is over."""

    def met(self, doing: Doing, error: OSError) -> None:
        """Something failed."""
        if isinstance(error, Told):
            return
        number, text = error.errno or 0, f"{doing} fail in {self._directory}: {_reason(error)}"
        with self._lock:
            trouble = self.now.setdefault(doing, _Trouble(0.0))
            trouble.last = self._clock()
            fresh = number not in trouble.texts
            trouble.texts[number] = text
        if fresh:
            self.log(text)

    def passed(self, doing: Doing) -> None:
        """Something of that kind went well, while `now` is not empty."""
        with self._lock:
            trouble = self.now.get(doing)
            if trouble is None or self._clock() - trouble.last < _QUIET:
                return
            del self.now[doing]
        self.log(f"{doing} go well again in {self._directory}")

    @property
    def text(self) -> str:
        """What fails, or nothing."""
        with self._lock:
            return "; ".join(text for trouble in self.now.values() for text in trouble.texts.values())


def _reason(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
