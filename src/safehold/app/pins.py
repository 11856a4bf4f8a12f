"""Points that are kept for volumes: pinned for one that is made of a point, let go of after it, and by hand where it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safehold.app.expire import select_any
from safehold.app.host import Host
from safehold.blocks.inventory import Found, Place
from safehold.blocks.layout import VolumeRecord
from safehold.model.context import Context
from safehold.model.errors import SafeholdError, UsageError
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.forget import Dependent
from safehold.vault.records import NoteBody
from safehold.vault.vault import Vault

__all__ = ["Kept", "Pins", "kept_for", "unpin"]


class Pins:
    """Those of one machine's volumes."""

    def __init__(self, open_vault: Callable[[str], Vault], host: Host, ctx: Context) -> None:
        """`open_vault` opens the vault at an address, anew each time."""
        self._open_vault, self._host, self._ctx = open_vault, host, ctx

    def put(self, vault: Vault, point: Point, record: VolumeRecord) -> None:
        """Have a point stay for a volume, by the pin that is on its record. UsageError where the point is being expired."""
        body = NoteBody("volume", self._ctx.clock.now(), {"volume": record.name, "host": self._host.name})
        vault.expiry().pin(point.wid, point.sid, body, record.pin)

    def let_go(self, record: VolumeRecord) -> bool:
        """Let go of the point that a volume was made of; false where that cannot be now."""
        if record.pin:
            try:
                self._open_vault(record.vault).expiry().unpin(record.pin)
            except SafeholdError as error:
                self._ctx.progress.warn(f"{record.name}: its point stays pinned ({error})")
                return False
        return True


@dataclass(frozen=True)
class Kept:
    """A point, or an object that should be one, and what it is kept for."""

    point: Point | Rejected
    dependents: tuple[Dependent, ...]


def kept_for(vault: Vault, selector: str, volume: str, host: str, here: Sequence[Found], this: Host) -> Kept:
    """What a point is kept for: all of that, or what is said to be a volume of that name, or on that host. `here` are the volumes of this host.
    UsageError where it is nothing, or where a volume of this host still needs the point.
    """
    point = select_any(vault, selector)
    dependents = tuple(
        one
        for one in vault.expiry().dependents(point.wid, point.sid)
        if volume in ("", one.volume) and host in ("", one.host)
    )
    if not dependents:
        raise UsageError("nothing of that kind depends on this point", on=point.id, remedy="see it: safehold points")
    for one in dependents:
        for found in here:
            _demand_gone(one, found, this)
    return Kept(point, dependents)


def _demand_gone(one: Dependent, found: Found, this: Host) -> None:
    if found.record is not None:
        if found.record.pin != one.pin or found.place is Place.OUTGOING:
            return
        what = "still needs this point"
    else:
        # What cannot be read may be the one that the pin tells of.
        if (one.volume, one.host) != (found.called, this.name) or found.place is Place.OUTGOING:
            return
        what = "cannot be read, and may still need this point"
    where = {Place.BINNED: " in the recycle bin", Place.MADE: ", which is being made or was,"}.get(found.place, "")
    remedy = f"give it up first: safehold volume delete {found.name} --for-good"
    if found.place is Place.MADE:
        remedy = "wait for it; the volume service lets go of what a kill has left: safehold volume list starts it"
    raise UsageError(f"the volume {found.called} of this host{where} {what}", on=one.pin, remedy=remedy)


def unpin(vault: Vault, kept: Kept) -> None:
    """Have a point stay no longer for what is gone. What should still be there loses the blocks that it has not got yet, once the point is
    expired.
    """
    expiry = vault.expiry()
    for one in kept.dependents:
        expiry.unpin(one.pin)
