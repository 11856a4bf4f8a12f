"""A systemd of our own, in namespaces of its own: it sees this machine read-only, and starts nothing but what it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.groups import ControlGroup

_START = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
for place in $(cut -d' ' -f2 /proc/self/mounts | grep ^/sys/fs/cgroup | sort -r); do umount "$place"; done
mount -t cgroup2 none /sys/fs/cgroup
for place in /run /etc/systemd /var/lib/systemd; do mkdir -p "$place"; mount -t tmpfs tmpfs "$place"; done
mkdir -p /run/systemd/system /etc/systemd/system
printf '[Unit]\\nDefaultDependencies=no\\n' > /etc/systemd/system/idle.target
mount --rbind "$0" "$0"
mount -o remount,bind,ro /
export container=test
exec /lib/systemd/systemd --system --unit=idle.target --log-target=null --show-status=0
"""
"""`idle.target` wants nothing, so none of the machine's own services is started a second time."""

_SECONDS = 60


@dataclass(frozen=True)
class Systemd:
    """A running one; `process` is its number here."""

    process: int

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespaces."""
        inside = ["nsenter", "-t", self.process, "-m", "-p", "-C", "-u", "-n", "-i", *command]
        return subprocess.run(
            [str(word) for word in inside], capture_output=True, text=True, timeout=_SECONDS, check=False
        )


@contextlib.contextmanager
def systemd(writable: Path) -> Iterator[Systemd]:
    """One that can write below `writable` only."""
    with ControlGroup.plain() as group:
        starter = subprocess.Popen(
            ["unshare", "-p", "-m", "-C", "-u", "-n", "-i", "--fork", "sh", "-c", _START, writable],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=group.join,
        )
        try:
            yield _ready(starter)
        finally:
            # With its first process goes all of a process namespace; the starter only waits for that one.
            for child in _children(starter.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            starter.wait(_SECONDS)


def _children(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _ready(starter: subprocess.Popen[bytes]) -> Systemd:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        assert starter.poll() is None, "systemd did not start"
        for child in _children(starter.pid):
            manager = Systemd(child)
            if manager.run("systemctl", "is-active", "idle.target").stdout.strip() == "active":
                return manager
        time.sleep(0.1)
    raise AssertionError("systemd is not ready")
