"""`safehold volume serve`: the process that serves volumes."""

from __future__ import annotations

import os

import click

from safehold.cli.running import Access, Run, vault_options
from safehold.compose.credentials import find_credentials
from safehold.compose.volume_service import serve_volumes
from safehold.model.errors import VaultKeyError

__all__ = ["serve"]


@click.command()
@vault_options
def serve(access: Access) -> None:
    """Serve this machine's volumes over NBD on a unix socket, until stopped. The other verbs start it where it does not run."""
    with Run.begin() as run:

        def nobody() -> str:
            raise VaultKeyError(
                "the volume service has nothing that opens the vault",
                remedy="restart it with SAFEHOLD_PASSPHRASE_FILE, SAFEHOLD_PASSPHRASE_COMMAND or SAFEHOLD_KIT set",
            )

        def ready() -> None:
            run.ctx.progress.note(f"serving volumes on {run.paths.volume_exports}")

        # The service leaves the directory that these are relative to.
        kit, identity, writer = (path and path.absolute() for path in (access.kit, access.identity, access.writer))
        serve_volumes(
            run.paths,
            lambda: find_credentials(os.environ, kit, identity, writer, nobody),
            ready,
            run.ctx,
        )
