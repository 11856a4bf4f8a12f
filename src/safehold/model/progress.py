"""How a long run tells what it is doing."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Receives what a run does; called from several threads at once."""

    def start(self, task: str, total: int | None) -> None:
        """A task begins; `total` is the bytes that it will handle, None where that is unknown."""
        ...

    def advance(self, amount: int) -> None:
        """`amount` more bytes are handled."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line in the log, in one sentence."""
        ...

    def warn(self, text: str) -> None:
        """Something the user should look at, though the run goes on."""
        ...

    def done(self) -> None:
        """The task started last is over."""
        ...


class Silent:
    """A Progress that keeps quiet."""

    def start(self, task: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, amount: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""

    def warn(self, text: str) -> None:
        """Ignored."""

    def done(self) -> None:
        """Ignored."""
