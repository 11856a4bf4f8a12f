"""A bracket vouches for a volume only where nobody else can write to it: another client, a program, a file system in another namespace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from safehold.compose.paths import Paths
from safehold.compose.volume_brackets import VolumeBrackets, find_brackets
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_snapshot import take_snapshot
from safehold.compose.volume_writers import Served
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError
from safehold.wire.nbd_negotiation import open_export
from tests.e2e.hosts import Host, run

NAME = Path("/proc/self/comm").read_text().strip()
LEFT = """
import os, sys
from safehold.wire.nbd_negotiation import open_export
kept = open_export(sys.argv[1], "data", 10)[0]
if os.fork():
    os._exit(0)
print("left", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk(host: Host) -> str:
    host.program.run("volume", "create", "data", "--size", "64M")
    return str(host.program.json("volume", "attach", "data")["device"])


@contextmanager
def on(disk: str, place: Path) -> Iterator[list[str]]:
    """A file system that is mounted, and the words for a bracket around it."""
    place.mkdir()
    run("mkfs.ext4", "-q", disk)
    run("mount", disk, place)
    try:
        yield ["--bracket", f"fsfreeze:{place}"]
    finally:
        run("umount", place)


@contextmanager
def parted(disk: str) -> Iterator[None]:
    """Two partitions of 24 MiB, at 1 and at 25 MiB."""
    for number, start in ((1, 2048), (2, 51200)):
        run("addpart", disk, number, start, 49152)
    try:
        yield
    finally:
        for number in (1, 2):
            run("delpart", disk, number)


def not_held(host: Host, bracket: list[str], who: str) -> None:
    """It is told who, refused where more was asked for, and recorded as a crash where not."""
    taken = len(host.show("data")["snapshots"])  # type: ignore[arg-type]
    said = host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem", code=7).stderr
    assert f"filesystem asked for: {who} is not held" in said
    assert len(host.show("data")["snapshots"]) == taken  # type: ignore[arg-type]
    done = host.program.run("volume", "snapshot", "data", *bracket)
    assert f"nothing holds {who}" in done.stderr
    assert host.show("data")["snapshots"][-1]["achieved"] == "crash"  # type: ignore[index]


def test_another_client(host: Host, disk: str, tmp_path: Path) -> None:
    with on(disk, tmp_path / "on") as bracket:
        host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")
        with open_export(str(host.socket), "data", 10)[0]:
            not_held(host, bracket, f"the client process {os.getpid()} ({NAME})")
        # As nbd-client leaves it: the process has ended, and its connection has not.
        with subprocess.Popen(
            [sys.executable, "-c", LEFT, host.socket], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == b"left\n"
            assert client.wait(30) == 0
            not_held(host, bracket, f"a client that process {client.pid} connected and left to the kernel")
        for _ in range(200):
            if host.show("data")["clients"] == 1:
                break
            time.sleep(0.05)
        host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")


def test_a_program_that_has_the_device(host: Host, disk: str, tmp_path: Path) -> None:
    with on(disk, tmp_path / "on") as bracket:
        with open(disk, "rb"):
            host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")
        with open(disk, "r+b"):
            not_held(host, bracket, f"the process {os.getpid()} ({NAME}) that has {disk} open")


def test_another_namespace(host: Host, disk: str, tmp_path: Path) -> None:
    """A second file system of the device, which is mounted in a container's namespace only."""
    other = tmp_path / "other"
    other.mkdir()
    with parted(disk):
        run("mkfs.ext4", "-q", f"{disk}p2")
        with on(f"{disk}p1", tmp_path / "on") as bracket:
            for options in ("ro", "rw"):
                script = f"mount -o {options} {disk}p2 {other} && echo there && read end"
                with subprocess.Popen(
                    ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                ) as container:
                    assert container.stdout is not None
                    assert container.stdout.readline() == b"there\n"
                    if options == "ro":
                        host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")
                    else:
                        where = f"what is mounted on {other} in the namespace of process {container.pid} (sh)"
                        not_held(host, bracket, where)
                    container.communicate(b"\n")
            host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")


def test_what_is_mounted_by_way_of_a_loop_device(host: Host, disk: str, tmp_path: Path) -> None:
    """A second file system of the device, on a loop device that begins where it does."""
    other = tmp_path / "other"
    other.mkdir()
    with parted(disk), on(f"{disk}p1", tmp_path / "on") as bracket:
        for backing, offset in ((f"{disk}p2", 0), (disk, 51200 * 512)):
            run("mkfs.ext4", "-q", "-F", f"{disk}p2")
            loop = run("losetup", "--find", "--show", "--offset", offset, backing).strip()
            try:
                host.program.run("volume", "snapshot", "data", *bracket, "--require", "filesystem")
                run("mount", loop, other)
                not_held(host, bracket, f"what is mounted on {other}")
                run("umount", other)
                with open(loop, "r+b"):
                    not_held(host, bracket, f"the process {os.getpid()} ({NAME}) that has {disk} open")
            finally:
                run("losetup", "--detach", loop)


def _and_stays(host: Host, disk: str, there: ExitStack) -> None:
    there.enter_context(open_export(str(host.socket), "data", 10)[0])


def _has_the_device(host: Host, disk: str, there: ExitStack) -> None:
    with open(disk, "r+b") as opened:
        sleeper = there.enter_context(subprocess.Popen(["sleep", "60"], stdin=opened))
    there.callback(sleeper.kill)


@pytest.mark.parametrize(
    ("come", "who"),
    [
        (_and_stays, "the client process "),
        (_has_the_device, "the process "),
    ],
)
def test_whoever_comes_while_brackets_are_entered(
    host: Host, disk: str, tmp_path: Path, come: Callable[[Host, str, ExitStack], None], who: str
) -> None:
    """After the look at who writes, and before the seal."""
    paths = Paths(host.home / "config", host.home / "state", host.home / "cache", host.home / "run")

    def find(served: Served) -> VolumeBrackets:
        found = find_brackets([bracket[1]], served, paths, Context())
        come(host, disk, there)
        return found

    with on(disk, tmp_path / "on") as bracket, ExitStack() as there:
        with pytest.raises(
            ConsistencyError, match=f"crash consistency can be reached, filesystem asked for: {re.escape(who)}"
        ):
            take_snapshot(VolumeClient(paths, {}, Context()), ["data"], None, find, {}, Context())
        snapshots = host.show("data")["snapshots"]
        assert [one["state"] for one in snapshots] == ["failed"]  # type: ignore[attr-defined]
        assert who in snapshots[0]["snapshot_problem"]  # type: ignore[index]
    host.program.run("volume", "snapshot", "data", "--wait")
