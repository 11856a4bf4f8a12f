"""The owner's notes: facts added after the commit about a point, a writer, or the vault itself."""

from __future__ import annotations

from collections.abc import Iterator

from safehold.model.context import Context
from safehold.model.errors import DamageError, ObjectExists
from safehold.ports.store import Store
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.keys import Keyring, OwnerKey, seal_to, unseal_with
from safehold.vault.names import Kind, note_name
from safehold.vault.records import Note, NoteBody
from safehold.vault.trust import OwnerTrust

__all__ = ["Notes"]


class Notes:
    """Reads and adds notes of one vault."""

    def __init__(
        self, store: Store, vault: bytes, trust: OwnerTrust, keyring: Keyring, owner: OwnerKey, ctx: Context
    ) -> None:
        self._store, self._vault, self._trust = store, vault, trust
        self._keyring, self._owner, self._ctx = keyring, owner, ctx

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
                return name

    def about(self, subject: bytes) -> Iterator[NoteBody]:
        """Every note about one subject, oldest first; unreadable ones are warned of and left out."""
        for _, _, body in self._read(f"notes/{subject.hex()}/"):
            yield body

    def revocations(self) -> dict[bytes, float]:
        """Writers that were revoked, by id, with the store's time of the note."""
        revoked: dict[bytes, float] = {}
        for subject, time, body in self._read(Kind.NOTE.prefix + "/"):
            if body.kind == "revoked":
                revoked[subject] = min(time, revoked.get(subject, time))
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

    def _read(self, prefix: str) -> Iterator[tuple[bytes, float, NoteBody]]:
        for stamp in self._store.list(prefix):
            try:
                opened = open_object(stamp.name, self._store.get(stamp.name))
                record = decode(opened.payload, Note, stamp.name)
                self._trust.check(self._vault, opened, record.generation)
                key = self._keyring.get(record.generation).seal
                plain = unseal_with(key, record.sealed, self._info(stamp.name), on=stamp.name)
                yield bytes.fromhex(stamp.name.split("/")[1]), stamp.time, decode(plain, NoteBody, stamp.name)
            except DamageError as error:
                self._ctx.progress.warn(f"a note cannot be read: {error}")
            except ValueError:
                self._ctx.progress.warn(f"not a note: {stamp.name}")
