"""Giving a vault's space back."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from safehold.app.host import UNKNOWN, Host, process_start
from safehold.model.context import Context
from safehold.model.errors import StoreError, StoreFull
from safehold.model.remembered import keep, recall
from safehold.ports.store import Store
from safehold.vault.gc.preview import Preview
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.sessions import OpenSession
from safehold.vault.vault import Vault

__all__ = ["Trial", "preview_prune", "prune_vault", "session_dead"]

Trial = Callable[[Store], str]
"""Tries whether a create-only put of a store has one winner and its listings are current; says what was wrong, or nothing."""

_TRIED = 30 * 86400.0
"""Seconds for which a store that kept order is not tried again."""


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


def preview_prune(vault: Vault, host: Host, patience: float, ctx: Context) -> PruneReport:
    """What a prune would do now. Nothing is written to the store."""
    with tempfile.TemporaryDirectory(prefix="prune-", dir=vault.places.scratch()) as scratch:
        ctx.progress.start("prune", None)
        report = Preview(vault, Path(scratch), session_dead(host, patience), ctx).run()
        ctx.progress.done()
    return report


def prune_vault(vault: Vault, host: Host, patience: float, trial: Trial | None, ctx: Context) -> PruneReport:
    """Delete what no point needs and no running backup can rely on.

    The order of the steps rests on what `trial` tries of the store, once a month: StoreError where the store does not keep it, and nothing is
    changed then. Without `trial` the caller vouches that nothing else is at work on the vault meanwhile. StoreFull where not even the little
    room is left that this takes.
    """
    try:
        return _prune(vault, host, patience, trial, ctx)
    except StoreFull as error:
        raise StoreFull(
            "the store is full, and giving space back takes a little of it",
            on=error.on,
            remedy="free a few megabytes of something else that lies there, and prune again; delete nothing of the vault by hand",
        ) from error


def _prune(vault: Vault, host: Host, patience: float, trial: Trial | None, ctx: Context) -> PruneReport:
    if trial is not None:
        _demand_order(vault, trial, ctx.clock.now())
    with tempfile.TemporaryDirectory(prefix="prune-", dir=vault.places.scratch()) as scratch:
        vault.mend()
        vault.expiry().collect(vault.store_time())
        ctx.progress.start("prune", None)
        report = Prune(vault, Path(scratch), session_dead(host, patience), ctx).run()
        ctx.progress.done()
    return report


def _demand_order(vault: Vault, trial: Trial, now: float) -> None:
    """StoreError unless the store was seen to keep order, now or not long ago. What it failed is tried again each time."""
    known = vault.places.tried_stores
    times = recall(known, dict[str, float], {})
    if abs(now - times.get(vault.store.url, -_TRIED)) < _TRIED:
        return
    wrong = trial(vault.direct)
    if wrong:
        raise StoreError(
            f"a prune is not safe on this store ({wrong})",
            on=vault.store.url,
            remedy="keep vaults on a store that safehold vault check-store finds right; to prune this one, stop every backup and prune "
            "of it on all machines, and give --exclusive",
        )
    times[vault.store.url] = now
    with contextlib.suppress(OSError):
        keep(known, msgspec.json.encode(times))
