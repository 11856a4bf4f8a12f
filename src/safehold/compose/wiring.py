"""Picks stores, and finds the vault that is meant."""

from __future__ import annotations

import os

from safehold.app.opening import Stores
from safehold.compose.paths import Paths
from safehold.model.clock import Clock
from safehold.model.errors import UsageError
from safehold.objects.limit import ByteSemaphore, LimitStore
from safehold.objects.location import UPLOAD_BUDGET, full_address, open_store
from safehold.objects.retry import RetryStore
from safehold.vault.places import Places

__all__ = ["named_vault", "open_stores", "places", "record_default_vault", "vault_address"]


_UPLOADS = ByteSemaphore(UPLOAD_BUDGET)
"""One for the process: a service has several vaults open, and memory is common to them."""


def open_stores(url: str, clock: Clock) -> Stores:
    """The store at that address: once with and once without retries. All of a process's stores share one bound on the bytes under way."""
    direct = LimitStore(open_store(url), _UPLOADS)
    return Stores(RetryStore(direct, clock), direct, full_address(direct.url))


def places(paths: Paths) -> Places:
    """Where an open vault keeps its own things on this machine."""
    return Places(paths.state, paths.cache)


def named_vault(option: str | None, environment: os._Environ[str], paths: Paths) -> str | None:
    """The address from `--vault`, `SAFEHOLD_VAULT`, or what `vault init` recorded; None where there is none."""
    if option or environment.get("SAFEHOLD_VAULT"):
        return option or environment["SAFEHOLD_VAULT"]
    try:
        return paths.default_vault.read_text().strip()
    except OSError:
        return None


def vault_address(option: str | None, environment: os._Environ[str], paths: Paths) -> str:
    """See `named_vault`; UsageError where there is none."""
    named = named_vault(option, environment, paths)
    if named is None:
        raise UsageError(
            "which vault?", remedy="give --vault, set SAFEHOLD_VAULT, or make one: safehold vault init PLACE"
        )
    return named


def record_default_vault(paths: Paths, url: str) -> bool:
    """Make `url` the default unless there is one already; true where it was recorded."""
    if paths.default_vault.exists():
        return False
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.default_vault.write_text(url + "\n")
    return True
