"""The frame around every object that is not a pack: magic, payload, signature, and a hash over name and bytes.

    object  = "SH1" ‖ kind code ‖ payload ‖ [64-byte Ed25519 signature] ‖ BLAKE3(name ‖ 0x00 ‖ all bytes before)
    signed  = "SH1 signature" ‖ vault id ‖ u16 length of name ‖ name ‖ all bytes before the signature

`vault.json` has no magic, so that people can read it: JSON, a newline, the hash. The NUL keeps name and bytes apart:
no two pairs hash the same input.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from safehold.model.errors import DamageError
from safehold.vault.names import Kind, kind_of

__all__ = ["Opened", "StoredCheck", "close", "decode", "encode", "open_object"]

_T = TypeVar("_T")
_HASH = 32
_SIGNATURE = 64
_MAGIC = b"SH1"


def _trailer(name: str, body: bytes) -> bytes:
    hasher = blake3(name.encode())
    hasher.update(b"\0")
    hasher.update(body)
    return hasher.digest()


def _to_sign(vault: bytes, name: str, body: bytes) -> bytes:
    raw = name.encode()
    return b"SH1 signature" + vault + struct.pack("<H", len(raw)) + raw + body


def encode(record: msgspec.Struct) -> bytes:
    """The payload bytes of a record."""
    return msgspec.msgpack.encode(record)


def decode(payload: bytes, type_: type[_T], name: str) -> _T:
    """The record of type `type_` in `payload`; DamageError naming the object otherwise."""
    try:
        return msgspec.msgpack.decode(payload, type=type_)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        # Fields that nobody knows are skipped, however deeply they are nested: whoever may write could nest them too deeply.
        raise DamageError(f"object does not hold what its kind should ({error})", on=name) from error


def close(vault: bytes, name: str, payload: bytes, signer: Ed25519PrivateKey | None = None) -> bytes:
    """The stored bytes of an object; `signer` is needed for the kinds that are signed and refused for the others."""
    kind = kind_of(name)
    if kind is None or kind.signed != (signer is not None):
        raise ValueError(f"cannot make {name} with{'' if signer else 'out'} a signature")
    body = payload + b"\n" if kind is Kind.VAULT else _MAGIC + kind.code + payload
    if signer is not None:
        body += signer.sign(_to_sign(vault, name, body))
    return body + _trailer(name, body)


class Opened:
    """An object whose trailing hash matched: its `payload`, its `digest` (BLAKE3 of all stored bytes), and a
    signature to check.
    """

    def __init__(self, name: str, kind: Kind, stored: bytes) -> None:
        self.name = name
        self.digest = blake3(stored).digest()
        body = stored[:-_HASH]
        if kind is Kind.VAULT:
            self.payload = body
            return
        self._signature = body[-_SIGNATURE:] if kind.signed else b""
        self._signed = body[: len(body) - len(self._signature)]
        self.payload = self._signed[len(_MAGIC) + 1 :]

    def check(self, vault: bytes, key: bytes) -> None:
        """Raise DamageError unless the object was signed by the Ed25519 public key `key` for this vault and this
        name.
        """
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(self._signature, _to_sign(vault, self.name, self._signed))
        except (InvalidSignature, ValueError) as error:
            raise DamageError("object is not signed by whom it should be", on=self.name) from error


def open_object(name: str, stored: bytes) -> Opened:
    """Take the frame off; DamageError where the bytes are not what was written under that name."""
    kind = kind_of(name)
    if kind is None or kind in (Kind.PACK, Kind.META):
        raise ValueError(f"{name} has no frame")
    shortest = _HASH + (0 if kind is Kind.VAULT else len(_MAGIC) + 1) + (_SIGNATURE if kind.signed else 0)
    if len(stored) < shortest or _trailer(name, stored[:-_HASH]) != stored[-_HASH:]:
        raise DamageError("object is damaged: its bytes do not match its hash", on=name)
    if kind is not Kind.VAULT and stored[: len(_MAGIC) + 1] != _MAGIC + kind.code:
        raise DamageError("object is of another kind or format", on=name)
    return Opened(name, kind, stored)


class StoredCheck:
    """Tells, piece by piece, whether bytes are the ones written under a name, as far as that can be told without any key.

    An empty object under `points/` is a fence and right as it is.
    """

    def __init__(self, name: str, size: int) -> None:
        """`size` is the length of all pieces together; ValueError for a name that no vault writes."""
        kind = kind_of(name)
        if kind is None:
            raise ValueError(f"{name} is of no kind")
        self._name, self._kind, self._size = name, kind, size
        self._pack = kind in (Kind.PACK, Kind.META)
        self._magic = b"" if self._pack or kind is Kind.VAULT else _MAGIC + kind.code
        self._hasher = blake3() if self._pack else blake3(name.encode() + b"\0")
        self._hashed = size if self._pack else max(0, size - _HASH)
        self._at, self._start, self._end = 0, b"", b""

    def update(self, piece: memoryview) -> None:
        """The next bytes."""
        if len(self._start) < len(_MAGIC) + 1:
            self._start += bytes(piece[: len(_MAGIC) + 1])
        body = max(0, min(len(piece), self._hashed - self._at))
        self._hasher.update(piece[:body])
        self._end += bytes(piece[body:])
        self._at += len(piece)

    def right(self) -> bool:
        """True where everything given is what was written under the name."""
        if self._pack:
            return self._hasher.hexdigest() == self._name.rsplit("/", 1)[1]
        if self._kind is Kind.POINT and not self._size:
            return True
        shortest = _HASH + len(self._magic) + (_SIGNATURE if self._kind.signed else 0)
        return self._size >= shortest and self._start.startswith(self._magic) and self._hasher.digest() == self._end
