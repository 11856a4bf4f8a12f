"""Making a vault, with its recovery kit."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.app.opening import Stores, known_at
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.vault.create import create_vault, timestamp
from safehold.vault.kit import render_kit
from safehold.vault.places import Places
from safehold.vault.records import Parameters
from safehold.vault.slots import Wrapper

__all__ = ["MadeVault", "make_vault"]

_SMALLEST, _LARGEST = 4096, 16 * 1024 * 1024


@dataclass(frozen=True)
class MadeVault:
    """A fresh vault: its id in hex and the text of its recovery kit."""

    id: str
    kit: str


def make_vault(
    stores: Stores, wrapper: Wrapper, parameters: Parameters, places: Places, ctx: Context, *, another: bool
) -> MadeVault:
    """UsageError where the place is not empty, where the block size is no power of two from 4 KiB to 16 MiB, and unless `another` is to be made,
    where it is empty and this machine knows a vault there.
    """
    size = parameters.block_size
    if size & (size - 1) or not _SMALLEST <= size <= _LARGEST:
        raise UsageError(
            "block size must be a power of two from 4K to 16M", on=str(size), remedy="leave it out for 512K"
        )
    empty = next(iter(stores.store.list("")), None) is None
    if empty and not another and known_at(places).knows(stores.place):
        raise UsageError(
            "this machine knows a vault at this place",
            on=stores.store.url,
            remedy="if it is not there now, see whether its disk is mounted; to make another one there: --another",
        )
    made = create_vault(stores.store, wrapper, parameters, "first", ctx)
    known_at(places).admit(stores.place, made.unlocked)
    return MadeVault(made.unlocked.document.id, render_kit(stores.store.url, made.kit, timestamp(ctx)))
