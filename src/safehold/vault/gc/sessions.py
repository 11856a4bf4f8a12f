"""Sessions as a prune sees them: which are open, how one is ended for good, and what is left of those that ended."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.model.errors import ObjectExists
from safehold.vault.bounds import check_size
from safehold.vault.envelope import decode, open_object
from safehold.vault.fetch import NOT_THERE
from safehold.vault.names import Kind, commit_name, kind_of, session_name
from safehold.vault.records import SessionInfo, SessionObject
from safehold.vault.sealing import open_body
from safehold.vault.vault import Vault

__all__ = ["OpenSession", "Sessions"]


@dataclass(frozen=True)
class OpenSession:
    """A session without a commit: when it was last heard of by the store's clock, and what it says of itself where that can be read."""

    wid: bytes
    sid: bytes
    heard: float
    info: SessionInfo | None


class Sessions:
    """The sessions of a vault, read with the owner's key."""

    def __init__(self, vault: Vault) -> None:
        self._vault, self._store = vault, vault.store

    def open(self) -> list[OpenSession]:
        """Sessions that have neither committed nor been fenced."""
        return [OpenSession(wid, sid, time, self._info(wid, sid)) for (wid, sid), time in self.open_ids().items()]

    def open_ids(self) -> dict[tuple[bytes, bytes], float]:
        """Writer and session ids of open sessions, with the store's time of their last sign of life."""
        heard: dict[tuple[bytes, bytes], float] = {}
        for stamp in self._store.list(Kind.SESSION.prefix + "/"):
            if kind_of(stamp.name) is Kind.SESSION:
                _, wid, rest = stamp.name.split("/")
                key = bytes.fromhex(wid), bytes.fromhex(rest.partition(".")[0])
                heard[key] = max(stamp.time, heard.get(key, 0.0))
        # The points come after the sessions: one that commits in between is not taken for open.
        ended = {stamp.name for stamp in self._store.list(Kind.POINT.prefix + "/")}
        return {ids: time for ids, time in heard.items() if commit_name(*ids) not in ended}

    def _info(self, wid: bytes, sid: bytes) -> SessionInfo | None:
        name = session_name(wid, sid)
        try:
            check_size(self._store.head(name))
            opened = open_object(name, self._store.get(name))
            certificate = self._vault.certificate(wid)
            if certificate is None:
                return None
            opened.check(self._vault.id, certificate.verify)
            record = decode(opened.payload, SessionObject, name)
            secret = self._vault.session_secret(record.key, on=name)
            return decode(open_body(secret.session_key, self._vault.id, name, record.sealed), SessionInfo, name)
        except NOT_THERE:
            return None

    def fence(self, session: OpenSession) -> bool:
        """End a session for good; False where it committed first."""
        name = commit_name(session.wid, session.sid)
        try:
            self._store.put(name, [b""])
        except ObjectExists:
            return not self._store.head(name).size
        return True

    def clean(self) -> None:
        """Session objects of sessions that ended; fences stay for good."""
        ended = {stamp.name for stamp in self._store.list(Kind.POINT.prefix + "/")}
        for stamp in list(self._store.list(Kind.SESSION.prefix + "/")):
            if kind_of(stamp.name) is Kind.SESSION:
                _, wid, rest = stamp.name.split("/")
                if commit_name(bytes.fromhex(wid), bytes.fromhex(rest.partition(".")[0])) in ended:
                    self._store.delete(stamp.name)
