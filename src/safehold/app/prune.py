"""Giving a vault's space back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from safehold.app.backup import UNKNOWN, Host, process_start
from safehold.model.context import Context
from safehold.vault.gc.prune import Prune, PruneReport
from safehold.vault.gc.sessions import OpenSession
from safehold.vault.vault import Vault

__all__ = ["prune_vault", "session_dead"]


def session_dead(host: Host, patience: float) -> Callable[[OpenSession, float], bool]:
    """Tells whether a session can be ended: its process on this host is gone, or nothing was heard of it for `patience` seconds of the
    store's time.
    """

    def dead(session: OpenSession, now: float) -> bool:
        info = session.info
        if info is not None and info.host == host.id and info.boot:
            before = info.boot.partition("/")[0] != host.boot.partition("/")[0]
            # Process numbers say something only among processes that see the same ones.
            if before or (info.boot == host.boot and process_start(info.pid) not in (info.process_start, UNKNOWN)):
                return True
        return now - session.heard > patience

    return dead


def prune_vault(vault: Vault, host: Host, patience: float, ctx: Context, *, dry_run: bool) -> PruneReport:
    """Delete what no point needs and no running backup can rely on; `dry_run` only tells what that is, for now."""
    with tempfile.TemporaryDirectory(prefix="safehold-") as scratch:
        if not dry_run:
            vault.mend()
            vault.expiry().collect(vault.store_time())
        prune = Prune(vault, Path(scratch), session_dead(host, patience), ctx)
        ctx.progress.start("prune", None)
        report = prune.preview() if dry_run else prune.run()
        ctx.progress.done()
    return report
