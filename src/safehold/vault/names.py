"""Names of the objects in a vault, and what kind each is."""

from __future__ import annotations

import enum
import re

from blake3 import blake3

__all__ = [
    "ZERO_ID",
    "Kind",
    "commit_name",
    "forget_name",
    "gc_name",
    "gc_number",
    "key_name",
    "kind_of",
    "log_name",
    "note_name",
    "pack_name",
    "pin_name",
    "point_subject",
    "run_name",
    "session_name",
    "writer_name",
]

ZERO_ID = bytes(32)
"""The id of every block of zeros, whatever its length; such a block is never stored."""


class Kind(enum.Enum):
    """The object kinds: the value is the name's first segment, `code` the byte in the object's magic."""

    VAULT = ("vault.json", b"v")
    KEY = ("keys", b"k")
    WRITER = ("writers", b"w")
    SESSION = ("sessions", b"s")
    PACK = ("packs", b"d")
    META = ("meta", b"m")
    INDEX = ("index", b"i")
    POINT = ("points", b"p")
    NOTE = ("notes", b"n")
    PIN = ("pins", b"x")
    LOG = ("logs", b"l")
    FORGET = ("forget", b"f")
    GC = ("gc", b"g")

    def __init__(self, prefix: str, code: bytes) -> None:
        self.prefix = prefix
        self.code = code

    @property
    def signed(self) -> bool:
        """True where an Ed25519 signature stands before the trailing hash."""
        return self not in (Kind.VAULT, Kind.KEY, Kind.PACK, Kind.META)


_HEX32 = "[0-9a-f]{32}"
_HEX64 = "[0-9a-f]{64}"
_PATTERNS = {
    Kind.VAULT: re.compile(r"vault\.json"),
    Kind.KEY: re.compile(rf"keys/{_HEX32}"),
    Kind.WRITER: re.compile(rf"writers/{_HEX32}"),
    Kind.SESSION: re.compile(rf"sessions/{_HEX32}/{_HEX32}(\.[0-9]{{6}})?"),
    Kind.PACK: re.compile(rf"packs/[a-z0-9]+/[0-9a-f]{{2}}/{_HEX64}"),
    Kind.META: re.compile(rf"meta/[0-9a-f]{{2}}/{_HEX64}"),
    Kind.INDEX: re.compile(rf"index/{_HEX32}/{_HEX32}-[0-9]{{6}}"),
    Kind.POINT: re.compile(rf"points/{_HEX32}/{_HEX32}"),
    Kind.NOTE: re.compile(rf"notes/{_HEX32}/[0-9]{{6}}"),
    Kind.PIN: re.compile(rf"pins/{_HEX32}"),
    Kind.LOG: re.compile(rf"logs/{_HEX32}/{_HEX32}/[0-9]{{8}}-[0-9]{{16}}"),
    Kind.FORGET: re.compile(rf"forget/{_HEX32}"),
    Kind.GC: re.compile(r"gc/[0-9]{10}"),
}


def kind_of(name: str) -> Kind | None:
    """The kind that an object's name says it is, or None for a name that no vault writes."""
    for kind, pattern in _PATTERNS.items():
        if pattern.fullmatch(name):
            return kind
    return None


def key_name(slot: bytes) -> str:
    """Of a key slot with a 16-byte id."""
    return f"keys/{slot.hex()}"


def writer_name(wid: bytes) -> str:
    """Of the certificate of the writer with the 16-byte id `wid`."""
    return f"writers/{wid.hex()}"


def session_name(wid: bytes, sid: bytes, beat: int = 0) -> str:
    """Of a session, or of its heartbeat number `beat` (from 1)."""
    return f"sessions/{wid.hex()}/{sid.hex()}" + (f".{beat:06d}" if beat else "")


def commit_name(wid: bytes, sid: bytes) -> str:
    """Of the point that commits a session."""
    return f"points/{wid.hex()}/{sid.hex()}"


def run_name(wid: bytes, sid: bytes, number: int) -> str:
    """Of a session's index run `number`, counted from 0."""
    return f"index/{wid.hex()}/{sid.hex()}-{number:06d}"


def pack_name(kind: Kind, digest: bytes, storage_class: str) -> str:
    """Of a pack with the BLAKE3 `digest`; metadata packs have no class, as they are always hot."""
    text = digest.hex()
    if kind is Kind.META:
        return f"meta/{text[:2]}/{text}"
    return f"packs/{storage_class}/{text[:2]}/{text}"


def note_name(subject: bytes, number: int) -> str:
    """Of note `number` about the session, writer or vault with the 16-byte id `subject`."""
    return f"notes/{subject.hex()}/{number:06d}"


def pin_name(pin: bytes) -> str:
    """Of a pin."""
    return f"pins/{pin.hex()}"


def point_subject(point: str) -> bytes:
    """The 16 bytes that notes about a point, and the intent to expire it, go by. Not the session's id alone: another writer may use the
    same one.
    """
    return blake3(point.encode()).digest()[:16]


def forget_name(point: str) -> str:
    """Of the intent to expire the point `points/<wid>/<sid>`."""
    return f"forget/{point_subject(point).hex()}"


def log_name(wid: bytes, stream: bytes, epoch: int, sequence: int) -> str:
    """Of one piece of a write-ahead or binary log stream."""
    return f"logs/{wid.hex()}/{stream.hex()}/{epoch:08d}-{sequence:016d}"


def gc_name(number: int) -> str:
    """Of record `number` of the gc chain."""
    return f"gc/{number:010d}"


def gc_number(name: str) -> int:
    """The number in a gc record's name."""
    return int(name.rsplit("/", 1)[1])
