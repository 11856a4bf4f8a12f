"""Sessions that have neither committed nor been fenced."""

from __future__ import annotations

from dataclasses import dataclass

from safehold.model.errors import DamageError, FormatError, ObjectNotFound, VaultKeyError
from safehold.vault.envelope import decode, open_object
from safehold.vault.names import Kind, commit_name, kind_of, session_name
from safehold.vault.records import SessionInfo, SessionObject
from safehold.vault.sealing import open_body
from safehold.vault.vault import Vault

__all__ = ["OpenSession", "open_ids", "open_sessions"]


@dataclass(frozen=True)
class OpenSession:
    """A session without a commit: when it was last heard of by the store's clock, and what it says of itself where that can be read."""

    wid: bytes
    sid: bytes
    heard: float
    info: SessionInfo | None


def open_sessions(vault: Vault) -> list[OpenSession]:
    """Every session without a commit or fence."""
    return [OpenSession(wid, sid, time, _info(vault, wid, sid)) for (wid, sid), time in open_ids(vault).items()]


def open_ids(vault: Vault) -> dict[tuple[bytes, bytes], float]:
    """Writer and session ids of open sessions, with the store's time of their last sign of life."""
    heard: dict[tuple[bytes, bytes], float] = {}
    for stamp in vault.store.list(Kind.SESSION.prefix + "/"):
        if kind_of(stamp.name) is Kind.SESSION:
            _, wid, rest = stamp.name.split("/")
            key = bytes.fromhex(wid), bytes.fromhex(rest.partition(".")[0])
            heard[key] = max(stamp.time, heard.get(key, 0.0))
    # The points come after the sessions: one that commits in between is not taken for open.
    ended = {stamp.name for stamp in vault.store.list(Kind.POINT.prefix + "/")}
    return {ids: time for ids, time in heard.items() if commit_name(*ids) not in ended}


def _info(vault: Vault, wid: bytes, sid: bytes) -> SessionInfo | None:
    name = session_name(wid, sid)
    try:
        opened = open_object(name, vault.store.get(name))
        certificate = vault.certificate(wid)
        if certificate is None:
            return None
        opened.check(vault.id, certificate.verify)
        record = decode(opened.payload, SessionObject, name)
        secret = vault.session_secret(record.key, on=name)
        return decode(open_body(secret.session_key, vault.id, name, record.sealed), SessionInfo, name)
    except (DamageError, ObjectNotFound, FormatError, VaultKeyError):
        # A hostile writer may announce whatever it likes: it counts as a session of which nothing is known.
        return None
