"""The points of a vault: listed, checked, cached, and found by `RESOURCE@WHEN`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, UsageError, VaultKeyError
from safehold.model.resource import what_there_is
from safehold.ports.store import Stamp, Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import decode, open_object
from safehold.vault.fetch import SecretCache
from safehold.vault.names import Kind, commit_name, kind_of, point_subject, writer_name
from safehold.vault.records import Certificate, PointBody, PointObject
from safehold.vault.sealed_cache import SealedCache
from safehold.vault.sealing import SessionSecret, open_body
from safehold.vault.trust import Writers
from safehold.vault.writers import allows

__all__ = ["CachedPoint", "Catalogue", "Listing", "Point", "Rejected", "choose"]


class Point(msgspec.Struct, frozen=True):
    """A committed point as a reader sees it. `time` is the store's; `digest` is the BLAKE3 of the stored object."""

    name: str
    wid: bytes
    sid: bytes
    time: float
    digest: bytes
    dedup_key: bytes
    body: PointBody

    @property
    def id(self) -> str:
        """What users see and type (any unambiguous prefix of it)."""
        return self.sid.hex()

    @property
    def subject(self) -> bytes:
        """What notes about it go by."""
        return point_subject(self.name)

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of its members."""
        return tuple(member.name for member in self.body.members)


_ANY_RESOURCE = ("*",)


class Rejected(msgspec.Struct, frozen=True):
    """What lies under `points/` and is no point, being damaged, forged, or of a writer that may not make it; and a point that is gone. `time`
    is the store's; with `earlier` it is the latest that it can have, of a point that is gone and that this machine has not read.

    `void` marks one that does not count because the owner said so, whatever it is: nothing is damaged. `barred` marks a sound one of a name
    that its writer may not use: nothing hangs on it either. `resources` are those of a point that this machine made, or that was sound
    when it read it before; of any other nobody can say, and `allowed` are patterns of what it may be of. `gone` marks a point that is not there.
    """

    name: str
    reason: str
    time: float
    void: bool = False
    barred: bool = False
    allowed: tuple[str, ...] = _ANY_RESOURCE
    resources: tuple[str, ...] = ()
    gone: bool = False
    earlier: bool = False

    @property
    def told(self) -> str:
        """What it is, and what is wrong with it."""
        return f"{self.name if self.gone else f'not a valid point: {self.name}'}: {self.reason}"

    @property
    def problem(self) -> str:
        """What an operator is told, with what to do about it."""
        if self.void or self.barred:
            return f"{self.told} → {self.remedy}" if self.remedy else self.told
        return f"{self.told} ({self.remedy})"

    @property
    def remedy(self) -> str:
        """How it comes to be in nobody's way; empty where it is in nobody's and has no name to let it go by."""
        if self.void or self.barred:
            return f"safehold point expire @{self.id[:8]}" if self.sid else ""
        return f"bring it back from a copy, or let it go: safehold point expire @{self.id[:8]}"

    @property
    def hurts(self) -> bool:
        """True where a point that should be there may be missing because of it."""
        return bool(self.sid) and not self.void and not self.barred

    def may_be_of(self, resource: str) -> bool:
        """True where it may be a point of that resource."""
        return allows(self.allowed, resource) and (not self.resources or resource in self.resources)

    @property
    def wid(self) -> bytes:
        """The writer in its name, who alone may have put it where the store keeps writers to their own names; empty where there is none."""
        return _named_writer(self.name)

    @property
    def sid(self) -> bytes:
        """The session in its name; empty where it is not the name of a point."""
        return bytes.fromhex(self.name.split("/")[2]) if kind_of(self.name) is Kind.POINT else b""

    @property
    def id(self) -> str:
        """What a point of that name would go by."""
        return self.sid.hex()

    @property
    def subject(self) -> bytes:
        """What notes about a point of that name go by."""
        return point_subject(self.name)


def _named_writer(name: str) -> bytes:
    wid = name.split("/")[1]
    return bytes.fromhex(wid) if kind_of(f"{Kind.WRITER.prefix}/{wid}") is Kind.WRITER else b""


class _Void(Exception):
    """What the owner decided not to count."""


class _Barred(Exception):
    """A sound point of a name that its writer may not use."""


class CachedPoint(msgspec.Struct, frozen=True):
    """A point as it is remembered on this machine. `time` is the store's of when it was first seen there, `stamp` of when it was read last: one
    that was taken away and brought back has a new one. `bad` tells that the object was damaged then, `counts` that it was a point of its vault.
    """

    size: int
    digest: bytes
    dedup_key: bytes
    body: PointBody
    time: float = 0.0
    stamp: float = 0.0
    bad: bool = False
    counts: bool = False

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of its members."""
        return tuple(member.name for member in self.body.members)


@dataclass(frozen=True)
class Listing:
    """The points, oldest first by the store's time; what lies among them without being one; and by their names those that this machine has read
    before and that are not there.
    """

    points: list[Point]
    rejected: list[Rejected]
    absent: dict[str, CachedPoint]


class Catalogue:
    """Reads the points of one vault with the owner's keys."""

    def __init__(
        self,
        store: Store,
        vault: bytes,
        secrets: SecretCache,
        writers: Writers,
        allowed: Callable[[Certificate], tuple[str, ...]],
        revoked: dict[bytes, float],
        forgotten: Callable[[str], bool],
        cache: SealedCache[CachedPoint],
    ) -> None:
        """`allowed` gives a writer's resource patterns; `revoked` the store time from when on a writer's points do
        not count; `forgotten` tells of a point's name whether the owner expired it; `cache` is what this machine remembers.
        """
        self._store, self._vault, self._secrets = store, vault, secrets
        self._writers, self._allowed, self._revoked = writers, allowed, revoked
        self._forgotten = forgotten
        self._cache = cache

    def read(self, *, fresh: bool) -> Listing:
        """Everything under `points/` but fences and what was expired; `fresh` reads all of it from the store itself."""
        cached = self._cache.load()
        entries: dict[str, CachedPoint] = {}
        points: list[Point] = []
        rejected: list[Rejected] = []
        gone = set(cached)
        for stamp in self._store.list(Kind.POINT.prefix + "/"):
            # A fence is neither, but it is no fence where there was a point.
            if stamp.size == 0:
                continue
            gone.discard(stamp.name)
            if self._forgotten(stamp.name):
                continue
            before = cached.get(stamp.name)
            try:
                entry = self._read(stamp, before, fresh)
                entries[stamp.name] = entry
                points.append(self._accept(stamp.name, entry))
                entries[stamp.name] = msgspec.structs.replace(entry, counts=True)
            except _Void as error:
                rejected.append(Rejected(stamp.name, str(error), stamp.time, void=True))
            except _Barred as error:
                rejected.append(Rejected(stamp.name, str(error), stamp.time, barred=True))
            except ObjectNotFound:
                # It was expired since it was listed, or it is lost.
                gone.update({stamp.name} & cached.keys())
            except (DamageError, FormatError, VaultKeyError) as error:
                was = before if before and before.counts else None
                time, known_as = (was.time, was.resources) if was else (stamp.time, ())
                allowed = self.patterns(stamp.name)
                rejected.append(Rejected(stamp.name, str(error), time, allowed=allowed, resources=known_as))
                if before:
                    entries[stamp.name] = msgspec.structs.replace(before, bad=True)
        absent = {name: cached[name] for name in gone if self._missed(name, cached[name])}
        entries |= absent
        if entries != cached:
            # Others have read what came later.
            self._cache.update(lambda now: {n: now[n] for n in now.keys() - cached.keys()} | entries)
        return Listing(sorted(points, key=lambda p: (p.time, p.name)), rejected, absent)

    def _missed(self, name: str, entry: CachedPoint) -> bool:
        return entry.counts and not self._forgotten(name) and not self._revoked_at(name, entry.time)

    def patterns(self, name: str) -> tuple[str, ...]:
        """Of the resources that an object of that name under `points/` may be of, by the writer in it."""
        certificate = self._writers.certificates.get(_named_writer(name))
        try:
            return self._allowed(certificate) if certificate else _ANY_RESOURCE
        except (DamageError, VaultKeyError):
            return _ANY_RESOURCE

    def _revoked_at(self, name: str, time: float) -> bool:
        since = self._revoked.get(_named_writer(name))
        return since is not None and time >= since

    def _read(self, stamp: Stamp, before: CachedPoint | None, fresh: bool) -> CachedPoint:
        # First of all: what a revoked writer puts there is nobody's concern, be it a point or not.
        if self._revoked_at(stamp.name, before.time if before and before.counts else stamp.time):
            raise _Void("made after its writer was revoked")
        if kind_of(stamp.name) is not Kind.POINT:
            raise DamageError("not the name of a point", on=stamp.name)
        if before is None:
            return msgspec.structs.replace(self._open(stamp), time=stamp.time, stamp=stamp.time)
        known = bytes.fromhex(stamp.name.split("/")[1]) in self._writers.certificates
        if known and not (fresh or before.bad) and (before.size, before.stamp) == (stamp.size, stamp.time):
            return before
        entry = self._open(stamp)
        if entry.digest != before.digest:
            raise DamageError("not the point that this machine has read under that name before", on=stamp.name)
        return msgspec.structs.replace(entry, time=before.time, stamp=stamp.time)

    def _open(self, stamp: Stamp) -> CachedPoint:
        wid = bytes.fromhex(stamp.name.split("/")[1])
        check_size(stamp)
        stored = self._store.get(stamp.name)
        opened = open_object(stamp.name, stored)
        record = decode(opened.payload, PointObject, stamp.name)
        # A certificate that was lost is taken from the point itself: it is the owner's signature on it that counts.
        certificate = self._writers.certificates.get(wid) or self._writers.learn(writer_name(wid), record.certificate)
        opened.check(self._vault, certificate.verify)
        if commit_name(record.key.wid, record.key.sid) != stamp.name:
            raise DamageError("point carries the key of another session", on=stamp.name)
        secret: SessionSecret = self._secrets.open(record.key, on=stamp.name)
        body = decode(open_body(secret.session_key, self._vault, stamp.name, record.sealed), PointBody, stamp.name)
        return CachedPoint(len(stored), opened.digest, secret.dedup_key, body)

    def _accept(self, name: str, entry: CachedPoint) -> Point:
        _, wid_text, sid_text = name.split("/")
        wid = bytes.fromhex(wid_text)
        certificate = self._writers.certificates[wid]
        patterns = self._allowed(certificate)
        for member in entry.body.members:
            if not allows(patterns, member.name):
                raise _Barred(f"writer may not make points of {member.name!r}")
        return Point(name, wid, bytes.fromhex(sid_text), entry.time, entry.digest, entry.dedup_key, entry.body)


def choose(
    points: Iterable[Point],
    resource: str,
    when: str,
    parse_time: Callable[[str], tuple[float, float]],
    rejected: Iterable[Rejected],
) -> Point:
    """The point of `resource` that `when` names.

    `latest` is the newest; a time names the newest point not after it, a day or minute the newest within it; anything
    else is the start of a point's id. `parse_time` gives the first and last instant that a time text covers, or
    raises ValueError. UsageError where nothing or more than one fits; DamageError where what is asked for is among `rejected`, or where the newest
    may be among these, which only an id gets past.
    """
    mine = [p for p in points if resource in p.resources or not resource]
    hurt = [one for one in rejected if one.hurts and (one.may_be_of(resource) or not resource)]
    if not mine:
        _tell_hurt([one for one in hurt if resource in one.resources], "no point of this resource can be read")
        also = f"; {len(hurt)} that cannot be read may be of it" if hurt else ""
        names = [name for point in points for name in point.resources]
        remedy = what_there_is(resource, names, "safehold points")
        raise UsageError(f"no points of this resource{also}", on=resource, remedy=remedy)
    if when == "latest":
        return _the_newest(mine, resource, float("inf"), hurt)
    matching = [p for p in mine if p.id.startswith(when.lower())] if _is_hex(when) else []
    if len(matching) == 1:
        return matching[0]
    if not matching and _is_hex(when):
        _tell_hurt([one for one in hurt if one.id.startswith(when.lower())], "the point cannot be read")
    if len(matching) > 1:
        raise UsageError(f"{when} is the start of {len(matching)} points", on=resource, remedy="give more of the id")
    try:
        _, last = parse_time(when)
    except ValueError:
        raise UsageError(
            f"no point {when!r}", on=resource, remedy=f"see what there is: safehold points {resource}"
        ) from None
    before = [p for p in mine if p.time <= last]
    if not before:
        raise UsageError(
            f"no point as old as {when}", on=resource, remedy=f"see what there is: safehold points {resource}"
        )
    return _the_newest(before, resource, last, hurt)


def _tell_hurt(hurt: Sequence[Rejected], what: str) -> None:
    if hurt:
        raise DamageError(f"{what}: {hurt[-1].reason}", on=hurt[-1].name, remedy=hurt[-1].remedy)


def _the_newest(points: Sequence[Point], resource: str, last: float, hurt: Iterable[Rejected]) -> Point:
    """The last of `points`, unless what cannot be read may be a newer one, of the time `last` at the latest: nobody is given an older state than was
    asked for without having said so.
    """
    newest = points[-1]
    named = resource or newest.resources[0]
    for one in hurt:
        if (newest.time, newest.name) < (one.time, one.name) and (one.time <= last or one.earlier):
            raise DamageError(
                f"a newer point cannot be read, and may be the one that is asked for ({one.reason})",
                remedy=f"the newest that can be read is {named}@{newest.id[:8]}: name it so; for the other see safehold verify",
            )
    return newest


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= 32 and all(c in "0123456789abcdefABCDEF" for c in text)
