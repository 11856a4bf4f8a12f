"""What is on record of a volume that is a block device, and what makes one of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from safehold.model.environment import plain_environment
from safehold.model.errors import FailedError

__all__ = ["RECONNECT", "Attachment", "Backing", "Unsuitable", "run_tool"]

RECONNECT = 30
"""Seconds that requests wait for a service that went away, before the disk gives errors: longer than a restart, shorter than the kernel's
patience with a hung task.
"""


class Unsuitable(Exception):
    """This machine cannot have a device of that kind, and nothing was left of the attempt; another kind may do."""


class Attachment(msgspec.Struct, frozen=True):
    """A volume and the device it is; `mount` is where Safehold mounted it, `options` how. Of a loop device `file` is what it shows, and `pid` and
    `started` name the daemon behind that for good; a device of the kernel's own nbd is known by its `backend`, and `pid` is the process that
    connected it. It was `made` at that second of the monotonic clock.
    """

    volume: str
    device: str
    file: str = ""
    pid: int = 0
    started: int = 0
    mount: str = ""
    options: str = ""
    backend: str = ""
    made: float = 0.0


class Backing(Protocol):
    """A way to make a device of a served volume."""

    def make(self, directory: Path, socket: Path, volume: str, turn: int) -> Attachment:
        """Make one; nothing stays half done. UsageError or Unsuitable where that cannot be done here, FailedError where a step fails. Programs
        that it runs keep the descriptor `turn` open.
        """

    def there(self, attached: Attachment) -> bool:
        """True while the device is that volume."""

    def dead(self, attached: Attachment) -> bool:
        """True where the device gives errors for ever: it can only be detached."""

    def take(self, attached: Attachment, turn: int) -> None:
        """Take the device away, which nobody has mounted; goes on with what was begun. `holders.Held` where somebody else has it, and nothing was
        done; FailedError where the kernel does not let it go.
        """


def run_tool(command: Sequence[str], on: str, *keep: int) -> str:
    """Its output; paths among its words are absolute. FailedError. `keep` are descriptors that it holds for as long as it lives."""
    done = subprocess.run(
        command,
        env=plain_environment(os.environ),
        # What goes on running keeps no file system from being unmounted.
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        pass_fds=keep,
    )
    if done.returncode:
        # The first line is the reason; what follows, with mount(8), is where to read on.
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FailedError(
            f"{command[0]} failed: {said[0].strip() if said else f'exit code {done.returncode}'}",
            on=on,
            remedy="mend that and try again",
        )
    return done.stdout
