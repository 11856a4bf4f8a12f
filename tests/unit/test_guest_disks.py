"""A guest's agent speaks for the disks that the guest has, and for no other. Real guests are in tests/e2e."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from safehold.adapters.linux import guest_disks
from safehold.compose import quiet
from safehold.compose.paths import Paths
from safehold.compose.volume_brackets import find_brackets
from safehold.compose.volume_writers import Served
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.quiesce.specs import parse_bracket

GUEST = """
import os, socket, sys
path, disk = sys.argv[1:]
file = open(disk)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(5)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as place:
        (Path(place) / "mine").write_bytes(bytes(4096))
        (Path(place) / "other").write_bytes(bytes(4096))
        yield Path(place)


@pytest.fixture
def guest(short: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the image `mine` open and listens where an agent's socket is."""
    command = [sys.executable, "-c", GUEST, str(short / "agent"), str(short / "mine")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def check(short: Path, image: str) -> None:
    ref = ResourceRef("volume", image, str(short / image))
    spec = parse_bracket(f"guest-agent:{short}/agent")
    quiet._check_guest(spec, str(short / "agent"), lambda process: quiet._has_disk(process, ref))


def test_an_image(short: Path, guest: subprocess.Popen[bytes]) -> None:
    check(short, "mine")
    with pytest.raises(UsageError, match="does not have the disk"):
        check(short, "other")


def test_a_socket_that_was_handed_on(short: Path) -> None:
    """Who listened first is not who runs the guest: a manager made the socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(short / "agent"))
    listener.listen(5)
    code = "import sys; file = open(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(short / "mine")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[listener.fileno()]) as process:
        listener.close()
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert guest_disks.guest_processes(str(short / "agent")) >= {process.pid}
        check(short, "mine")
        with pytest.raises(UsageError, match="does not have the disk"):
            check(short, "other")
        assert process.stdin is not None
        process.stdin.close()


def test_a_volume(short: Path, guest: subprocess.Popen[bytes]) -> None:
    paths = Paths(short / "config", short / "state", short / "cache", short / "run")

    def brackets(clients: set[int]) -> None:
        find_brackets(
            [f"guest-agent:{short}/agent"],
            Served({}, [str(short / "v")], lambda name: clients, ["data"]),
            paths,
            Context(),
        )

    brackets({guest.pid})
    with pytest.raises(UsageError, match="does not have the disk"):
        brackets({os.getpid()})


def test_what_cannot_be_seen_is_refused(
    short: Path, guest: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(process: int, wanted: object) -> bool:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(quiet, "has_open", hidden)
        with pytest.raises(UsageError, match="cannot be seen"):
            check(short, "mine")
    # A process of another namespace is none that can be asked about.
    monkeypatch.setattr(quiet, "guest_processes", lambda path: set())
    with pytest.raises(UsageError, match="cannot be seen"):
        check(short, "mine")
