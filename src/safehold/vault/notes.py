"""The owner's notes: facts added after the commit about a point, a writer, or the vault itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectExists, ObjectNotFound, StorePermission
from safehold.ports.store import Stamp, Store
from safehold.vault.bounds import check_size
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.keys import Keyring, OwnerKey, seal_to, unseal_with
from safehold.vault.names import Kind, note_name
from safehold.vault.records import Note, NoteBody
from safehold.vault.sealed_cache import SealedCache
from safehold.vault.trust import OwnerTrust

__all__ = ["Facts", "FoundNote", "Notes", "noted"]


class FoundNote(msgspec.Struct, frozen=True):
    """A note, its subject, and the store's time of it."""

    subject: bytes
    time: float
    body: NoteBody


@dataclass
class Facts:
    """What the owner noted about a point: why it is held (empty: it is not), tags set since and taken away, and when it was last seen
    whole in its structure and in its data (store's time, 0 for never).
    """

    held: str = ""
    tags: dict[str, str | None] = field(default_factory=dict)
    structure: float = 0.0
    data: float = 0.0

    def learn(self, time: float, body: NoteBody) -> None:
        """Take the next note in."""
        data = body.data
        if body.kind == "hold":
            self.held = str(data.get("reason") or "held")
        elif body.kind == "release":
            self.held = ""
        elif body.kind == "tag":
            self.tags.update({str(key): None if value is None else str(value) for key, value in data.items()})
        elif body.kind == "verified":
            self.structure = max(self.structure, time)
            if data.get("depth") == "data":
                # The proof is as old as the oldest read that it rests on.
                self.data = max(self.data, min(time, float(data.get("since", time))))

    def tagged(self, made_with: dict[str, str]) -> dict[str, str]:
        """The tags in force of a point that was made with some."""
        both: dict[str, str | None] = {**made_with, **self.tags}
        return {key: value for key, value in both.items() if value is not None}


def noted(store: Store, vault: bytes, trust: OwnerTrust, subject: bytes) -> bool:
    """True where the owner noted something about a subject, for those who cannot read what: by the note's signature, or, where the store does not
    let it be read, by its name alone. False where the store does not show the names either.
    """
    try:
        names = [stamp.name for stamp in store.list(f"{Kind.NOTE.prefix}/{subject.hex()}/")]
    except StorePermission:
        return False
    return any(_by_owner(store, vault, trust, name) for name in names)


def _by_owner(store: Store, vault: bytes, trust: OwnerTrust, name: str) -> bool:
    try:
        opened = open_object(name, store.get(name))
        trust.check(vault, opened, decode(opened.payload, Note, name).generation)
    except StorePermission:
        return True
    except (DamageError, ObjectNotFound):
        return False
    return True


class Notes:
    """Reads and adds notes of one vault."""

    def __init__(
        self,
        store: Store,
        vault: bytes,
        trust: OwnerTrust,
        keyring: Keyring,
        owner: OwnerKey,
        cache: SealedCache[FoundNote],
        ctx: Context,
    ) -> None:
        self._store, self._vault, self._trust = store, vault, trust
        self._keyring, self._owner, self._ctx = keyring, owner, ctx
        self._cache = cache
        self._found: list[FoundNote] | None = None

    def _info(self, name: str) -> bytes:
        return b"SH1 note" + self._vault + name.encode()

    def add(self, subject: bytes, kind: str, data: dict[str, object]) -> str:
        """Add a note about the session, writer or vault with that 16-byte id; returns its name."""
        taken = [stamp.name for stamp in self._store.list(f"notes/{subject.hex()}/")]
        number = int(taken[-1].rsplit("/", 1)[1]) + 1 if taken else 0
        body = encode(NoteBody(kind, self._ctx.clock.now(), data))
        while True:
            name = note_name(subject, number)
            record = Note(self._owner.generation, seal_to(self._owner.public.seal, body, self._info(name)))
            try:
                self._store.put(name, [close(self._vault, name, encode(record), self._owner.sign)])
            except ObjectExists:
                number += 1
            else:
                self._found = None
                return name

    def about(self, subject: bytes) -> Iterator[NoteBody]:
        """Every note about one subject, oldest first; unreadable ones are warned of and left out."""
        for found in self.all():
            if found.subject == subject:
                yield found.body

    def revocations(self) -> dict[bytes, float]:
        """Writers that were revoked, by id, with the store's time of the note."""
        revoked: dict[bytes, float] = {}
        for found in self.all():
            if found.body.kind == "revoked":
                revoked[found.subject] = min(found.time, revoked.get(found.subject, found.time))
        return revoked

    def remember_kit(self) -> None:
        """Note that a recovery kit of the owner's generation in force opened the vault."""
        if not self.kit_known():
            self.add(self._vault, "kit", {"generation": self._owner.generation})

    def kit_known(self) -> bool:
        """True where a recovery kit of the generation in force was seen to open the vault."""
        return any(
            n.kind == "kit" and n.data.get("generation") == self._owner.generation for n in self.about(self._vault)
        )

    def facts(self) -> dict[bytes, Facts]:
        """What the notes say of each subject."""
        facts: dict[bytes, Facts] = {}
        for found in self.all():
            facts.setdefault(found.subject, Facts()).learn(found.time, found.body)
        return facts

    def all(self) -> list[FoundNote]:
        """Every note, of each subject the oldest first; unreadable ones are warned of and left out."""
        if self._found is None:
            self._found = list(self._read())
        return self._found

    def _read(self) -> Iterator[FoundNote]:
        cached = self._cache.load()
        entries: dict[str, FoundNote] = {}
        for stamp in self._store.list(Kind.NOTE.prefix + "/"):
            found = cached.get(stamp.name)
            try:
                if found is None or found.time != stamp.time:
                    found = self._open(stamp)
            except ObjectNotFound:
                continue
            except DamageError as error:
                self._ctx.progress.warn(f"a note cannot be read: {error}")
            except ValueError:
                self._ctx.progress.warn(f"not a note: {stamp.name}")
            else:
                entries[stamp.name] = found
                yield found
        if entries.keys() != cached.keys():
            self._cache.store(entries)

    def _open(self, stamp: Stamp) -> FoundNote:
        check_size(stamp)
        opened = open_object(stamp.name, self._store.get(stamp.name))
        record = decode(opened.payload, Note, stamp.name)
        self._trust.check(self._vault, opened, record.generation)
        key = self._keyring.get(record.generation).seal
        plain = unseal_with(key, record.sealed, self._info(stamp.name), on=stamp.name)
        return FoundNote(bytes.fromhex(stamp.name.split("/")[1]), stamp.time, decode(plain, NoteBody, stamp.name))
