"""What lets go of one thing that is held. Each is made before anything is held, with all it needs, and can be done again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from typing import Protocol

from safehold.watchdog.agent import Agent, AgentError
from safehold.watchdog.kernel import mount, thaw
from safehold.watchdog.messages import Message

__all__ = ["AgentThaw", "Mount", "Remount", "Run", "Thaw", "Undo", "UndoFailed", "make_undo"]

_MS_REMOUNT, _MS_PRIVATE, _MS_SHARED = 0x20, 1 << 18, 1 << 20


class UndoFailed(Exception):
    """It is not let go of yet; worth trying again."""


class Undo(Protocol):
    """Lets go of one thing."""

    what: str

    def release(self) -> None:
        """Let go, or find that nothing is held. Called again while the owner may still be at it. OSError or UndoFailed."""
        ...

    def close(self) -> None:
        """Keep nothing open or running any more: it is not called again."""
        ...


def make_undo(data: Message) -> Undo:
    """The undo that `data` tells of. OSError, ValueError or KeyError where it could not be done later."""
    kinds: dict[str, type[Thaw] | type[AgentThaw] | type[Mount] | type[Remount] | type[Run]] = {
        "thaw": Thaw,
        "agent": AgentThaw,
        "mount": Mount,
        "remount": Remount,
        "run": Run,
    }
    return kinds[str(data["kind"])](data)


def _open(path: str, device: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    found = os.fstat(fd).st_dev
    if f"{os.major(found)}:{os.minor(found)}" != device:
        os.close(fd)
        raise ValueError(f"{path} lies on device {os.major(found)}:{os.minor(found)}, not on {device}")
    return fd


def _unescape(word: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), word))


class Thaw:
    """`{kind: thaw, path, device}`. The directory is opened at once: in a frozen file system looking a name up may wait."""

    def __init__(self, data: Message) -> None:
        self.what = f"thaw {data['path']}"
        self._fd = _open(str(data["path"]), str(data["device"]))

    def release(self) -> None:
        """See `Undo`."""
        thaw(self._fd)

    def close(self) -> None:
        """See `Undo`. Open, it would keep the file system from being unmounted."""
        os.close(self._fd)


class AgentThaw:
    """`{kind: agent, path, seconds}`: a guest, by the agent in it that answers on a unix socket."""

    def __init__(self, data: Message) -> None:
        self._path, self._seconds = str(data["path"]), float(data["seconds"])
        self.what = f"thaw the guest of {self._path}"

    def release(self) -> None:
        """See `Undo`."""
        try:
            with Agent(self._path, self._seconds) as agent:
                if agent.frozen():
                    agent.thaw()
        except AgentError as error:
            raise UndoFailed(f"the guest agent {error}") from error

    def close(self) -> None:
        """See `Undo`."""


class Mount:
    """`{kind: mount, source, path, type, flags, options, shared}`: what was unmounted. A source that is a device stays open here, so that a
    loop device which ends with its last user is still there.
    """

    def __init__(self, data: Message) -> None:
        self.what = f"mount {data['source']} on {data['path']}"
        self._source, self._path, self._kind = str(data["source"]), str(data["path"]), str(data["type"])
        self._flags, self._options, self._shared = int(data["flags"]), str(data["options"]), bool(data["shared"])
        self._fd = os.open(self._source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def release(self) -> None:
        """See `Undo`."""
        if self._mounted():
            return
        mount(self._source, self._path, self._kind, self._flags, self._options)
        mount("", self._path, "", _MS_SHARED if self._shared else _MS_PRIVATE, "")

    def close(self) -> None:
        """See `Undo`."""
        os.close(self._fd)

    def _mounted(self) -> bool:
        with open("/proc/self/mountinfo", "rb") as table:
            for line in table:
                before, _, after = line.partition(b" - ")
                where, source = (_unescape(word) for word in (before.split()[4], after.split()[1]))
                if (where, source) == (self._path, self._source):
                    return True
        return False


class Remount:
    """`{kind: remount, path, device, flags, options}`: what was made read-only, with the flags that it had."""

    def __init__(self, data: Message) -> None:
        self.what = f"make {data['path']} writable"
        self._fd = _open(str(data["path"]), str(data["device"]))
        self._flags, self._options = int(data["flags"]), str(data["options"])

    def release(self) -> None:
        """See `Undo`."""
        if os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            mount("", f"/proc/self/fd/{self._fd}", "", self._flags | _MS_REMOUNT, self._options)

    def close(self) -> None:
        """See `Undo`. Open, it would keep the file system from being unmounted."""
        os.close(self._fd)


class Run:
    """`{kind: run, argv, environment, directory, seconds}`: a command that has to end well within its time."""

    def __init__(self, data: Message) -> None:
        self._argv = [str(word) for word in data["argv"]]
        self.what = f"run {' '.join(self._argv)}"
        self._environment = {str(name): str(value) for name, value in data["environment"].items()}
        self._directory, self._seconds = str(data["directory"]), float(data["seconds"])
        if not os.path.isabs(self._argv[0]) or not os.access(self._argv[0], os.X_OK):
            raise ValueError(f"{self._argv[0]} is no absolute path of a program")
        self._done = False
        self._process: subprocess.Popen[bytes] | None = None

    def release(self) -> None:
        """See `Undo`. Once it ended well it is not run again: the owner is not let start the other half after that."""
        if self._done:
            return
        quiet = subprocess.DEVNULL
        self._process = process = subprocess.Popen(
            self._argv,
            env=self._environment,
            cwd=self._directory,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            start_new_session=True,
        )
        try:
            code = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            self.close()
            process.wait()
            raise UndoFailed(f"did not end within {self._seconds:g} s") from None
        if code != 0:
            raise UndoFailed(f"ended with code {code}")
        self._done = True

    def close(self) -> None:
        """See `Undo`."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
