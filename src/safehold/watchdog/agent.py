"""The QEMU guest agent behind a unix socket of its virtual machine: a JSON object a line in each direction (QEMU Guest Agent Protocol Reference).

The socket takes one client at a time, so nobody stays connected while the guest is frozen: whoever lets go has to get through.

As a program, `python -I -m safehold.watchdog.agent ping|freeze|thaw SOCKET SECONDS`: prints how many file systems it was, and ends with 0; or what is
wrong, and ends with 1, or with 2 where the guest had been frozen before.
"""

from __future__ import annotations

import json
import secrets
import socket
import sys
import time
from typing import Any

__all__ = ["Agent", "AgentError"]

_MOST = 1 << 20
"""Bytes of an answer: a guest is nobody to be trusted with this machine's memory."""

_SENTINEL = b"\xff"
_FROZEN_BEFORE = 2


class AgentError(Exception):
    """The agent does not answer, or says no."""


class Agent:
    """A connection on which answers are those to what was asked here. All of it has to end within its time. Use as a context manager."""

    def __init__(self, path: str, seconds: float) -> None:
        """AgentError where nobody answers."""
        self._until = time.monotonic() + seconds
        self._rest = b""
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._wait()
            self._link.connect(path)
            self._synchronise()
        except TimeoutError as error:
            self._link.close()
            raise AgentError("does not answer in time") from error
        except OSError as error:
            self._link.close()
            raise AgentError(f"cannot be reached ({error.strerror or error})") from error
        except BaseException:
            self._link.close()
            raise

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *exc: object) -> None:
        self._link.close()

    def frozen(self) -> bool:
        """Whether the guest's file systems are frozen. AgentError."""
        return bool(self._ask("guest-fsfreeze-status") == "frozen")

    def freeze(self) -> int:
        """Freeze all of the guest's file systems that can be; returns how many. AgentError."""
        return self._count("guest-fsfreeze-freeze")

    def thaw(self) -> int:
        """Thaw them; returns how many were frozen. AgentError."""
        return self._count("guest-fsfreeze-thaw")

    def _count(self, command: str) -> int:
        answer = self._ask(command)
        if not isinstance(answer, int) or isinstance(answer, bool):
            raise AgentError(f"answers {command} with no number")
        return answer

    def _ask(self, command: str) -> Any:
        try:
            self._say({"execute": command}, b"")
            answer = self._hear(b"\n")
        except TimeoutError as error:
            raise AgentError(f"does not answer {command} in time") from error
        except OSError as error:
            raise AgentError(f"hung up ({error.strerror or error})") from error
        match answer:
            case {"return": value}:
                return value
            case {"error": {"desc": str(text)}}:
                raise AgentError(f"says no to {command}: {text[:200]}")
        raise AgentError(f"answers {command} with something else")

    def _synchronise(self) -> None:
        """Let go of what earlier clients left on the way: their answers, and parts of what they asked."""
        token = secrets.randbelow(1 << 48)
        self._say({"execute": "guest-sync-delimited", "arguments": {"id": token}}, _SENTINEL)
        while True:
            self._until_byte(_SENTINEL)
            if self._hear(b"\n") == {"return": token}:
                return

    def _say(self, message: dict[str, Any], before: bytes) -> None:
        self._wait()
        self._link.sendall(before + json.dumps(message).encode() + b"\n")

    def _hear(self, end: bytes) -> Any:
        line = self._until_byte(end)
        try:
            return json.loads(line)
        except ValueError:
            return None

    def _until_byte(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._wait()
            got = self._link.recv(4096)
            if not got:
                raise AgentError("hung up")
            if len(self._rest) + len(got) > _MOST:
                raise AgentError("talks without end")
            self._rest += got
        line, _, self._rest = self._rest.partition(end)
        return line

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise AgentError("does not answer in time")
        self._link.settimeout(left)


def _main(words: list[str]) -> int:
    verb, path, seconds = words
    try:
        with Agent(path, float(seconds)) as agent:
            if verb == "freeze":
                if agent.frozen():
                    print("has frozen its guest already, for somebody else")
                    return _FROZEN_BEFORE
                print(agent.freeze())
            elif verb == "thaw":
                print(agent.thaw())
            else:
                agent.frozen()
                print(0)
    except AgentError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
