"""One question, one answer, over a unix socket that only its owner may use: a JSON document on a line each way."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safehold.model import errors
from safehold.model.errors import FailedError, SafeholdError, UsageError
from safehold.model.shown import in_words

__all__ = ["ControlServer", "ServiceAbsent", "ServiceLost", "ask"]

_LONGEST = 4 * 1024 * 1024
"""Bytes of a question or an answer; a longer one is rubbish."""

_LAST_ANSWERS = 5.0
"""Seconds that answers on their way may take at the end; the one to `stop` is among them."""


class ServiceAbsent(FailedError):
    """Nobody answers on the socket."""


class ServiceLost(FailedError):
    """Somebody listened, and ended before he answered: what was asked for may be done or not."""


def ask(path: Path, question: Mapping[str, object], timeout: float) -> dict[str, Any]:
    """The answer of whoever listens there. Raises the SafeholdError that it answers with, ServiceAbsent where nobody listens, ServiceLost where
    somebody does who ends before the answer, and FailedError where none comes in time: what was asked for may be done or not.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise ServiceAbsent(
                f"the volume service does not answer ({in_words(error)})",
                on=str(path),
                remedy="start it: safehold volume serve",
            ) from error
        try:
            connection.sendall(json.dumps(question).encode() + b"\n")
            answer = json.loads(_line(connection))
        except TimeoutError as error:
            raise FailedError(
                f"the volume service did not answer within {timeout:g} s",
                on=str(path),
                remedy="see whether it hangs, and what came of it: safehold volume list",
            ) from error
        except (OSError, ValueError) as error:
            raise ServiceLost(
                f"the volume service went away before it answered ({in_words(error)})",
                on=str(path),
                remedy="see what came of it: safehold volume list",
            ) from error
    if not isinstance(answer, dict):
        raise FailedError("something else answers", on=str(path), remedy="see who listens there: fuser -v")
    failure = answer.get("error")
    if isinstance(failure, dict):
        kind = getattr(errors, str(failure.get("kind")), FailedError)
        kind = kind if isinstance(kind, type) and issubclass(kind, SafeholdError) else FailedError
        raise kind(
            *(str(failure.get("what", "")),), on=str(failure.get("on", "")), remedy=str(failure.get("remedy", ""))
        )
    return answer


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = connection.recv(65536)
        if not part or len(data) > _LONGEST:
            raise ValueError("an answer that breaks off")
        data += part
    return data


def _question(line: bytes) -> dict[str, object]:
    """UsageError where a line is none."""
    try:
        question = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _rubbish() from error
    if not isinstance(question, dict):
        raise _rubbish()
    return question


def _rubbish() -> UsageError:
    return UsageError("not a question that can be understood", remedy="send one JSON object on one line")


def _listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as knock:
        # Without waiting: one that is too busy to take the connection says so (EAGAIN), and listens.
        knock.setblocking(False)
        try:
            knock.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


class ControlServer:
    """Listens on a socket and answers each question in a thread of its own."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[Mapping[str, object]], Mapping[str, object]],
        unexpected: Callable[[Exception], None],
    ) -> None:
        """`answer` may raise SafeholdError; what else it raises is told to `unexpected`. A socket file that nobody listens on is replaced;
        FailedError where somebody does.
        """
        self._answer, self._unexpected = answer, unexpected
        self.answering = 0
        """Questions that wait for their answers."""
        self._answered = threading.Condition()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        # Of two that begin at the same time a lock of their owner's keeps one away; this is for whatever does not know of that.
        if _listened_on(path):
            self._socket.close()
            raise FailedError("another program listens here", on=str(path), remedy="stop it: fuser -v names it")
        try:
            fresh.unlink(missing_ok=True)
            self._socket.bind(str(fresh))
            os.chmod(fresh, 0o600)
            self._socket.listen(16)
            # In one step: whoever looks finds the old socket, on which nobody listens, or this one.
            os.replace(fresh, path)
        except OSError as error:
            self._socket.close()
            raise FailedError(
                f"cannot listen ({error.strerror})",
                on=str(path),
                remedy="check the directory and the length of its path",
            ) from error
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer; return when the answers on their way are given."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        with self._answered:
            self._answered.wait_for(lambda: not self.answering, _LAST_ANSWERS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(60)
                line = _line(connection)
                with self._on_its_way():
                    connection.sendall(json.dumps(self._told(line)).encode() + b"\n")
            except (OSError, ValueError):
                # Somebody who went away, or who never comes to an end: nobody is left to tell.
                return

    @contextlib.contextmanager
    def _on_its_way(self) -> Iterator[None]:
        with self._answered:
            self.answering += 1
        try:
            yield
        finally:
            with self._answered:
                self.answering -= 1
                self._answered.notify_all()

    def _told(self, line: bytes) -> Mapping[str, object]:
        try:
            return self._answer(_question(line))
        except SafeholdError as error:
            kind = next(one.__name__ for one in type(error).__mro__ if hasattr(errors, one.__name__))
            return {"error": {"kind": kind, "what": error.what, "on": error.on, "remedy": error.remedy}}
        except Exception as error:  # the last line of defence: whoever asked would wait, and not know why
            self._unexpected(error)
            what = f"the volume service met what it does not know ({type(error).__name__}: {error})"
            return {"error": {"kind": "FailedError", "what": what, "on": "", "remedy": "see its log"}}
