"""Picks stores, sources and targets."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from safehold.adapters.image.source import ImageSource
from safehold.adapters.image.target import open_existing, open_new
from safehold.app.opening import Stores
from safehold.app.restore import RestoreMode
from safehold.compose.paths import Paths
from safehold.model.clock import Clock
from safehold.model.errors import UsageError
from safehold.model.resource import ResourceRef
from safehold.objects.limit import ByteSemaphore, LimitStore
from safehold.objects.location import UPLOAD_BUDGET, open_store
from safehold.objects.retry import RetryStore
from safehold.ports.blocks import MutableBlocks
from safehold.ports.source import Source
from safehold.vault.vault import Places

__all__ = ["open_stores", "open_target", "places", "record_default_vault", "resolve_source", "vault_address"]


def open_stores(url: str, clock: Clock) -> Stores:
    """The store at that address: bounded, and once with and once without retries."""
    direct = LimitStore(open_store(url), ByteSemaphore(UPLOAD_BUDGET))
    return Stores(RetryStore(direct, clock), direct)


def places(paths: Paths) -> Places:
    """Where an open vault keeps its own things on this machine."""
    return Places(paths.state, paths.cache)


def vault_address(option: str | None, environment: os._Environ[str], paths: Paths) -> str:
    """From `--vault`, `SAFEHOLD_VAULT`, or what `vault init` recorded; UsageError where there is none."""
    if option:
        return option
    if environment.get("SAFEHOLD_VAULT"):
        return environment["SAFEHOLD_VAULT"]
    try:
        return paths.default_vault.read_text().strip()
    except OSError:
        raise UsageError(
            "which vault?", remedy="give --vault, set SAFEHOLD_VAULT, or make one: safehold vault init PLACE"
        ) from None


def record_default_vault(paths: Paths, url: str) -> bool:
    """Make `url` the default unless there is one already; true where it was recorded."""
    if paths.default_vault.exists():
        return False
    paths.config.mkdir(parents=True, exist_ok=True)
    paths.default_vault.write_text(url + "\n")
    return True


def resolve_source(spec: str) -> tuple[Source, ResourceRef]:
    """The source that takes `spec`; UsageError where none does."""
    for source in (ImageSource(),):
        ref = source.resolve(spec)
        if ref is not None:
            return source, ref
    there = Path(spec).exists()
    raise UsageError(
        "this kind of thing cannot be backed up" if there else "no such file or device",
        on=spec,
        remedy="give a raw or qcow2 image or a block device",
    )


def open_target(path: str, size: int, mode: RestoreMode) -> AbstractContextManager[MutableBlocks]:
    """A new file, or an existing file or device, as the mode says. A block device is never new: it needs the mode
    said.
    """
    if mode is RestoreMode.NEW:
        return open_new(path, size)
    return open_existing(path, size)
