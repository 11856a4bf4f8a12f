"""A process that outlives whoever started it works in the root directory: any other would keep its file system from being unmounted."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["work_in_root"]

_FILES = (
    "SAFEHOLD_HOME",
    "SAFEHOLD_KIT",
    "SAFEHOLD_IDENTITY",
    "SAFEHOLD_WRITER",
    "SAFEHOLD_PASSPHRASE_FILE",
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "SSL_CERT_FILE",
    "TMPDIR",
)
"""Variables that name files and directories."""

_COMMAND = "SAFEHOLD_PASSPHRASE_COMMAND"


def work_in_root(environment: MutableMapping[str, str]) -> Path:
    """Go to the root directory; what `environment` names is what it named before. Returns where this process was."""
    before = Path("/")
    # Somebody may have deleted it; nothing was to be found there then.
    with contextlib.suppress(OSError):
        before = Path.cwd()
    for name in _FILES:
        if environment.get(name):
            environment[name] = str(before / Path(environment[name]).expanduser())
    if environment.get(_COMMAND):
        # Should that directory be gone when the passphrase is asked for, most commands can do without.
        environment[_COMMAND] = f"cd {shlex.quote(str(before))} 2>/dev/null; {environment[_COMMAND]}"
    os.chdir("/")
    return before
