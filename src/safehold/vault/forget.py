"""Expiring points: an intent first, then the session, then the point.

The intent comes first so that whoever pins the point at the same moment is noticed: a pinner looks for an intent after pinning, and this
looks for pins after the intent; one of the two sees the other. The session goes before the point, so that a writer who still tries to
commit it finds that it has ended. An intent stays: a point that comes back behind it (a put that the network delivers late) does not count.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from safehold.model.errors import DamageError, ObjectExists, ObjectNotFound, UsageError, VaultKeyError
from safehold.ports.store import Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.keys import Keyring, OwnerKey, seal_to, unseal_with
from safehold.vault.names import Kind, commit_name, forget_name, kind_of, pin_name, session_name
from safehold.vault.records import Forget, NoteBody, Pin
from safehold.vault.trust import OwnerTrust

__all__ = ["Dependent", "Expiry", "forgotten_points", "is_forgotten", "pinned_points", "unaccounted"]


def is_forgotten(store: Store, vault: bytes, trust: OwnerTrust, point: str) -> bool:
    """True where the owner said that the point `points/<wid>/<sid>` is to be expired."""
    wanted = point.removeprefix("points/")
    name = forget_name(point)
    try:
        opened = open_object(name, store.get(name))
        record = decode(opened.payload, Forget, name)
        trust.check(vault, opened, record.generation)
    except (ObjectNotFound, DamageError):
        return False
    return record.point == wanted


def unaccounted(store: Store, vault: bytes, trust: OwnerTrust, names: Iterable[str]) -> tuple[str, ...]:
    """Those of these points that are gone, or fenced, without the owner having said that they are to be forgotten. Empty names are no points."""
    lost = []
    for name in dict.fromkeys(names):
        try:
            if not name or store.head(name).size:
                continue
        except ObjectNotFound:
            pass
        if not is_forgotten(store, vault, trust, name):
            lost.append(name)
    return tuple(lost)


def forgotten_points(
    store: Store, vault: bytes, trust: OwnerTrust, before: float = float("inf")
) -> Callable[[str], bool]:
    """Tells of a point's object name whether the owner expired it, by the store's time not after `before`; the intents are listed once.

    An intent about a point that something depends on is void: its maker was interrupted before he saw the pin.
    """
    intents = {stamp.name for stamp in store.list(Kind.FORGET.prefix + "/") if stamp.time <= before}
    if not intents:
        return lambda point: False
    try:
        pinned = pinned_points(store, vault, trust)
    except DamageError:
        # A pin that cannot be read may be of any point.
        return lambda point: False

    def forgotten(point: str) -> bool:
        return (
            forget_name(point) in intents
            and point.removeprefix("points/") not in pinned
            and is_forgotten(store, vault, trust, point)
        )

    return forgotten


def pinned_points(store: Store, vault: bytes, trust: OwnerTrust) -> dict[str, str]:
    """Points that something depends on, as `<wid>/<sid>`, with the name of one pin. DamageError for a pin that cannot be read: it may be of
    any point.
    """
    return dict(_pins(store, vault, trust))


def _pins(store: Store, vault: bytes, trust: OwnerTrust) -> Iterator[tuple[str, str]]:
    for stamp in store.list(Kind.PIN.prefix + "/"):
        try:
            check_size(stamp)
            opened = open_object(stamp.name, store.get(stamp.name))
            record = decode(opened.payload, Pin, stamp.name)
            trust.check(vault, opened, record.generation)
        except ObjectNotFound:
            continue
        except ValueError:
            raise DamageError("not a pin", on=stamp.name, remedy="nothing is expired while it is there") from None
        yield record.point, stamp.name


@dataclass(frozen=True)
class Dependent:
    """What a point is kept for, as the maker of the pin says: a volume on a host, or nothing that can be told (both empty)."""

    pin: str
    volume: str = ""
    host: str = ""

    def __str__(self) -> str:
        return f"the volume {self.volume} on {self.host or 'another host'}" if self.volume else "something"


class Expiry:
    """Lets single points go, whatever the reason."""

    def __init__(
        self, store: Store, vault: bytes, trust: OwnerTrust, keyring: Keyring, owner: OwnerKey, recycle: float
    ) -> None:
        """`owner` is the key in force of the keyring, `recycle` how many seconds an expired point stays in the store, out of sight."""
        self._store, self._vault, self._trust = store, vault, trust
        self._keyring, self._owner = keyring, owner
        self._recycle = recycle

    def pinned(self) -> dict[str, str]:
        """See `pinned_points`."""
        return pinned_points(self._store, self._vault, self._trust)

    def fresh_pin(self) -> str:
        """The name of a pin that is to be made."""
        return pin_name(os.urandom(16))

    def pin(self, wid: bytes, sid: bytes, body: NoteBody, name: str = "") -> str:
        """Have a point stay while something depends on it; returns the pin's name for `unpin`: `name`, of `fresh_pin`, where the maker has to know it
        before. UsageError where the point is being expired.
        """
        point = f"{wid.hex()}/{sid.hex()}"
        name = name or self.fresh_pin()
        sealed = seal_to(self._owner.public.seal, encode(body), self._info(name))
        record = Pin(self._owner.generation, point, sealed)
        self._store.put(name, [close(self._vault, name, encode(record), self._owner.sign)])
        # Whoever expires it at this moment either sees the pin, or left the intent that is looked for here.
        if is_forgotten(self._store, self._vault, self._trust, commit_name(wid, sid)):
            self._store.delete(name)
            raise UsageError("the point is being expired", on=point, remedy="take another one")
        return name

    def unpin(self, name: str) -> None:
        """Nothing depends on that pin's point any more; harmless where the pin is gone."""
        with contextlib.suppress(ObjectNotFound):
            self._store.delete(name)

    def forget(self, wid: bytes, sid: bytes) -> None:
        """Expire a point: it no longer counts when this returns. UsageError where something depends on it."""
        point = f"{wid.hex()}/{sid.hex()}"
        self.demand_free(wid, sid)
        name = forget_name(commit_name(wid, sid))
        stored = close(self._vault, name, encode(Forget(self._owner.generation, point)), self._owner.sign)
        try:
            self._store.put(name, [stored])
        except ObjectExists:
            if not is_forgotten(self._store, self._vault, self._trust, commit_name(wid, sid)):
                raise DamageError(
                    "an intent to expire the point is damaged", on=name, remedy="delete the object"
                ) from None
        try:
            self.demand_free(wid, sid)
        except UsageError:
            self._store.delete(name)
            raise

    def demand_free(self, wid: bytes, sid: bytes) -> None:
        """UsageError where something depends on a point, which names it."""
        dependents = self.dependents(wid, sid)
        if not dependents:
            return
        first, others = dependents[0], len(dependents) - 1
        on = f"{sid.hex()} ({first.pin})" + (f", and {others} more" if others else "")
        gone = f"where that is gone for good: safehold point unpin @{sid.hex()[:8]}"
        if not first.volume:
            raise UsageError("something depends on this point", on=on, remedy=f"let that end first; {gone}")
        raise UsageError(
            f"{first} is filled in from this point",
            on=on,
            remedy=f"wait until it is (safehold volume show {first.volume}), or give it up there: "
            f"safehold volume delete {first.volume} --for-good; {gone}",
        )

    def dependents(self, wid: bytes, sid: bytes) -> list[Dependent]:
        """What a point is kept for; those of which it can be told come first. DamageError for a pin that cannot be read: it may be of any point."""
        point = f"{wid.hex()}/{sid.hex()}"
        found = []
        for of, pin in _pins(self._store, self._vault, self._trust):
            if of == point:
                told = self._about(pin)
                found.append(Dependent(pin, str(told.get("volume") or ""), str(told.get("host") or "")))
        return sorted(found, key=lambda one: not one.volume)

    def _about(self, pin: str) -> dict[str, object]:
        """What its maker says in a pin; nothing where it cannot be read."""
        try:
            record = decode(open_object(pin, self._store.get(pin)).payload, Pin, pin)
            plain = unseal_with(self._keyring.get(record.generation).seal, record.sealed, self._info(pin), on=pin)
            return decode(plain, NoteBody, pin).data
        except (ObjectNotFound, DamageError, VaultKeyError):
            return {}

    def _info(self, pin: str) -> bytes:
        return b"SH1 pin" + self._vault + pin.encode()

    def end_session(self, wid: bytes, sid: bytes) -> None:
        """Have nobody wait for the session of an expired point."""
        for session in list(self._store.list(session_name(wid, sid))):
            self._store.delete(session.name)

    def collect(self, now: float) -> int:
        """Delete the points that were expired long enough ago; returns how many. `now` is the store's time.

        Also finishes what an interrupted expiry left.
        """
        done = 0
        forgotten = forgotten_points(self._store, self._vault, self._trust, now - self._recycle)
        for stamp in list(self._store.list(Kind.POINT.prefix + "/")):
            if kind_of(stamp.name) is not Kind.POINT or not stamp.size or not forgotten(stamp.name):
                continue
            _, wid, sid = stamp.name.split("/")
            self.end_session(bytes.fromhex(wid), bytes.fromhex(sid))
            self._store.delete(stamp.name)
            done += 1
        return done
