"""What the watchdog notices: messages, the owner's end, a signal, or nothing in time."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Protocol

from safehold.watchdog.messages import Hangup, Message, receive, send

__all__ = ["DEATH", "HANGUP", "SIGNAL", "OwnerSenses", "Senses", "start_of"]

HANGUP: Message = {"op": "hangup"}
DEATH: Message = {"op": "death"}
SIGNAL: Message = {"op": "signal"}

_MANY = 4096
"""Signals that came at once are one."""


class Senses(Protocol):
    """The world of a vigil."""

    def now(self) -> float:
        """Seconds that never go back."""
        ...

    def next(self, seconds: float) -> Message | None:
        """What happens first within so many seconds: a message, HANGUP or DEATH, once each, or SIGNAL; None for nothing."""
        ...

    def say(self, message: Message) -> None:
        """Answer the owner, if there is one; never waits."""
        ...


def start_of(process: int) -> int:
    """Clock ticks from boot to the start of a process. OSError where there is none."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


class OwnerSenses:
    """The senses for a real owner at the other end of a socket."""

    def __init__(self, link: socket.socket, owner: int, start: int) -> None:
        """OSError or ValueError where the owner is no more, or its number is another's by now."""
        self._link = link
        self._process = os.pidfd_open(owner)
        if start_of(owner) != start:
            raise ValueError(f"process {owner} is not the owner any more")
        self._told, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        self._watched = {
            self._link.fileno(): self._read,
            self._process: self._dead,
            self._told: self._signalled,
        }

    def now(self) -> float:
        """See `Senses`."""
        return time.monotonic()

    def next(self, seconds: float) -> Message | None:
        """See `Senses`."""
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}
        # In this order: what the owner said before it went is still its word.
        for fd, sense in self._watched.items():
            if fd in ready:
                return sense()
        return None

    def _read(self) -> Message:
        try:
            return receive(self._link)
        except Hangup:
            del self._watched[self._link.fileno()]
            return HANGUP

    def _dead(self) -> Message:
        del self._watched[self._process]
        return DEATH

    def _signalled(self) -> Message:
        os.read(self._told, _MANY)
        return SIGNAL

    def say(self, message: Message) -> None:
        """See `Senses`."""
        send(self._link, message)
