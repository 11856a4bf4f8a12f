"""What the verbs of volumes share: the service, started where it does not run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from safehold.cli.running import Access, Run, ask_passphrase
from safehold.compose.volume_client import VolumeClient

__all__ = ["volume_client"]

_SECRETS = ("SAFEHOLD_PASSPHRASE", "SAFEHOLD_PASSPHRASE_FILE", "SAFEHOLD_PASSPHRASE_COMMAND", "SAFEHOLD_KIT")
_OTHERS = ("SAFEHOLD_IDENTITY", "SAFEHOLD_WRITER")


@contextlib.contextmanager
def volume_client(run: Run, access: Access | None = None) -> Iterator[VolumeClient]:
    """The service's client. A service that has to be started opens the vault like this run would."""
    environment = dict(os.environ)
    if access is not None:
        given = {"SAFEHOLD_KIT": access.kit, "SAFEHOLD_IDENTITY": access.identity, "SAFEHOLD_WRITER": access.writer}
        environment |= {name: str(path.absolute()) for name, path in given.items() if path}
    client = VolumeClient(run.paths, environment, run.ctx)
    if not any(environment.get(name) for name in (*_SECRETS, *_OTHERS)) and sys.stdin.isatty() and not client.running():
        environment["SAFEHOLD_PASSPHRASE"] = ask_passphrase()
        client = VolumeClient(run.paths, environment, run.ctx)
    yield client
