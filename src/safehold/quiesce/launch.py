"""Starts the watchdog, where nothing that ends this process ends it too."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

from safehold.model.environment import plain_environment
from safehold.model.errors import ConsistencyError
from safehold.model.shown import in_words

__all__ = ["launch"]

_PROGRAM = (sys.executable, "-I", "-m", "safehold.watchdog")
"""Isolated: neither the environment nor the current directory chooses what it imports."""

_SECONDS = 30.0
"""For a process to start on a busy machine."""

_MANAGED = Path("/run/systemd/system")
"""There where systemd runs, sd_booted(3)."""


def launch() -> socket.socket:
    """A connection to a fresh watchdog. ConsistencyError where none can be started.

    Where systemd runs and lets us, the watchdog is a transient unit of its own, as a stop of the service takes all of the service's
    control group. Else it is a child that leaves on its own, and tells how far it got.
    """
    try:
        if os.geteuid() == 0 and _MANAGED.is_dir() and shutil.which("systemd-run"):
            link = _unit()
            if link is not None:
                return link
        return _child()
    except (OSError, subprocess.SubprocessError) as error:
        raise ConsistencyError(
            f"the watchdog cannot be started ({in_words(error)}), and without it nothing is held",
            on=sys.executable,
            remedy="free some memory, then try again",
        ) from error


def _child() -> socket.socket:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        quiet = subprocess.DEVNULL
        first = subprocess.Popen(
            [*_PROGRAM, "--fd", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env={},
            cwd="/",
        )
    # It forks at once, and its own child goes on.
    first.wait(_SECONDS)
    return mine


def _unit() -> socket.socket | None:
    """None where systemd does not want to."""
    name = f"safehold-watchdog-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind("\0" + name)
        door.listen(4)
        door.settimeout(_SECONDS)
        # Nothing that systemd may not be able to set: the watchdog takes its place by itself, and tells how far it got.
        properties = ("Type=exec", "DefaultDependencies=no")
        done = subprocess.run(
            ["systemd-run", "--quiet", "--collect", f"--unit={name}"]
            + [f"--property={word}" for word in properties]
            + [*_PROGRAM, "--connect", name],
            env=plain_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            return None
        while True:
            link, _ = door.accept()
            # Everybody on the machine can see the name of the socket.
            _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user == os.geteuid():
                return link
            link.close()
