"""The NBD server: a unix socket, its clients, and their end."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import threading
import time
from types import TracebackType

from safehold.blocks.connection import Connection
from safehold.model.errors import FailedError, UsageError
from safehold.model.progress import Progress, Silent
from safehold.ports.export import ExportDirectory

__all__ = ["CLIENTS", "NbdServer"]

CLIENTS = 256
"""Clients at a time: a device is one. Each has a thread, and 2 MiB of memory as far as its requests fill them."""
_REFUSALS = 16
"""Clients above that who are told so at the same time; more are cut off without a word."""

_BACKLOG = 128
_LONGEST_PATH = 107
"""Bytes of a unix socket's address (unix(7): 108 with the zero at its end)."""


class NbdServer:
    """Offers a directory of exports on a unix socket that only this user may connect to. A context manager; thread-safe."""

    def __init__(
        self,
        path: str,
        directory: ExportDirectory,
        *,
        clients: int = CLIENTS,
        patience: float = 30.0,
        progress: Progress | None = None,
    ) -> None:
        """Serves from here on. `clients` at a time, the next is told that it is one too many; `patience` in seconds for a client's negotiation.

        UsageError where the path cannot be a socket, FailedError where another server has it.
        """
        self.path = path
        self._directory = directory
        self._clients = clients
        self._patience = patience
        self._progress = progress or Silent()
        self._lock = threading.Lock()
        self._serving: dict[Connection, threading.Thread] = {}
        self._told_full = False
        self._stopped = self._ended = False
        self._guard = _take(path)
        try:
            self._listener = _listen(path)
        except BaseException:
            os.close(self._guard)
            raise
        self._accepting = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._accepting.start()

    def __enter__(self) -> NbdServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if self._stopped:
                    return
                self._progress.warn(f"a client could not be let in ({error})")
                time.sleep(0.1)  # out of descriptors, most likely: what is served goes on
                continue
            if not self._begin(client):
                client.close()

    def _begin(self, client: socket.socket) -> bool:
        """True where a thread serves this client from here on, or tells it why it is not served."""
        with self._lock:
            if self._stopped:
                return False
            connected = sum(1 for one in self._serving if not one.refusal)
            full = connected >= self._clients
            begun = len(self._serving) < self._clients + _REFUSALS
            if begun:
                why = f"the service has {connected} clients, as many as it takes: detach a volume first" if full else ""
                begun = self._start(
                    Connection(client, self._directory, self._patience, self._progress, self._outlast, why)
                )
            tell, self._told_full = not self._told_full, full or not begun
        if tell and self._told_full:
            self._progress.warn(f"a client was turned away: {connected} are connected")
        return begun

    def _start(self, connection: Connection) -> bool:
        thread = threading.Thread(target=self._serve, args=(connection,), name="nbd-client", daemon=True)
        self._serving[connection] = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            del self._serving[connection]
            return False
        return True

    def _outlast(self, newcomer: Connection) -> None:
        with self._lock:
            others = [one for one in self._serving if one is not newcomer and one.export == newcomer.export]
        for one in others:
            if one.gone():
                one.end_changes()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.serve()
        except Exception as error:  # one client's trouble is not another's
            self._progress.warn(f"a client was cut off ({type(error).__name__}: {error})")
        finally:
            with self._lock:
                del self._serving[connection]

    def processes(self, name: str) -> list[int]:
        """The processes that are clients of an export, one for each connection; 0 for one of another namespace."""
        with self._lock:
            return [one.process for one in self._serving if one.export == name]

    def hold(self) -> None:
        """Let nobody in and carry out no more requests; clients wait, however long that takes. May be called twice."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            serving = list(self._serving)
        for connection in serving:
            connection.hold()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def rest(self, grace: float = 10.0) -> None:
        """Return when nothing is under way and what was answered is durable, after `hold`. A client that takes no replies is cut off after
        `grace` seconds.
        """
        deadline = time.monotonic() + grace
        with self._lock:
            serving = list(self._serving)
        for connection in serving:
            connection.rest(deadline)

    def stop(self, grace: float = 10.0) -> None:
        """Hold, rest, and hang up; returns when that is done. May be called twice."""
        self.hold()
        self.rest(grace)
        with self._lock:
            if self._ended:
                return
            self._ended = True
            serving = dict(self._serving)
        for connection, thread in serving.items():
            connection.stop()
            thread.join()
        os.unlink(self.path)
        os.close(self._guard)


def _take(path: str) -> int:
    """The lock of a socket path, held as long as its descriptor is open: of two servers, one gets it."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError("the path of a socket is too long", on=path, remedy=f"at most {_LONGEST_PATH} bytes")
    try:
        guard = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"no socket can be made ({error.strerror})", on=path, remedy="name another path") from error
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(guard)
        raise FailedError("another server has this socket", on=path, remedy="stop it, or name another path") from error
    return guard


def _listen(path: str) -> socket.socket:
    """A listening socket at `path` in place of one that nobody listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError("something else than a socket is in the way", on=path, remedy="name another path")
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(1)
            knock.connect(path)
        raise FailedError("another program listens here", on=path, remedy="stop it, or name another path")
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError as error:
        raise FailedError(f"another program listens here ({error})", on=path, remedy="name another path") from error
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)  # nobody connects before listen, so nobody does with another mode
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"no socket can be made ({error.strerror})", on=path, remedy="name another path") from error
    return listener
