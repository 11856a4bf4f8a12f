"""How chunks and bodies are encrypted.

    chunk id  BLAKE3-keyed(dedup key, plaintext)
    K_c       BLAKE3-keyed(session key, "chunk" ‖ chunk id ‖ codec ‖ u32 plain length)
    record    u16 slot of the session key in the pack's table ‖ 12-byte nonce ‖ AES-256-GCM ciphertext and tag
    AAD       "SH1" ‖ vault id ‖ kind code ‖ chunk id ‖ codec ‖ u32 plain length ‖ u32 record length

The AAD names neither pack nor offset, and the slot is outside of it: a repack moves records as they are.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from safehold.model.errors import DamageError, FormatError
from safehold.vault.keys import SUITE_X25519, Keyring, seal_to, unseal_with
from safehold.vault.names import Kind
from safehold.vault.records import OwnerPublic, SealedKey

__all__ = [
    "MAX_PLAIN",
    "RECORD_OVERHEAD",
    "ChunkOpener",
    "ChunkSealer",
    "SessionSecret",
    "chunk_id",
    "open_body",
    "open_secret",
    "seal_body",
    "seal_secret",
]

MAX_PLAIN = 16 * 1024 * 1024
"""No chunk is longer: bounds what a hostile length can make a reader allocate."""

RECORD_OVERHEAD = 2 + 12 + 16
_RAW, _ZSTD = 0, 1
_WORTH = 0.95
"""Compressed data is kept only below this share of the plain length: decompressing costs more than a few saved
percent give back.
"""


@dataclass(frozen=True, slots=True)
class SessionSecret:
    """A session's two secrets, 32 bytes each, and whose they are."""

    wid: bytes
    sid: bytes
    session_key: bytes
    dedup_key: bytes


def chunk_id(dedup_key: bytes, plaintext: memoryview | bytes) -> bytes:
    """The id of a chunk in the domain of `dedup_key`."""
    return blake3(plaintext, key=dedup_key).digest()


def _info(vault: bytes, wid: bytes, sid: bytes) -> bytes:
    return b"SH1 session" + vault + wid + sid


def seal_secret(vault: bytes, owner: OwnerPublic, secret: SessionSecret) -> SealedKey:
    """Seal a session's secrets so that only the owner can read them."""
    sealed = seal_to(owner.seal, secret.session_key + secret.dedup_key, _info(vault, secret.wid, secret.sid))
    return SealedKey(secret.wid, secret.sid, owner.generation, SUITE_X25519, sealed)


def open_secret(vault: bytes, keyring: Keyring, key: SealedKey, *, on: str) -> SessionSecret:
    """Undo `seal_secret`; `on` names the object that carried the key. DamageError, VaultKeyError, FormatError."""
    if key.suite != SUITE_X25519:
        raise FormatError(
            f"session key is sealed with suite {key.suite}, which this program lacks",
            on=on,
            remedy="use a newer safehold",
        )
    owner = keyring.get(key.generation)
    both = unseal_with(owner.seal, key.sealed, _info(vault, key.wid, key.sid), on=on)
    if len(both) != 64:
        raise DamageError("sealed session key has the wrong length", on=on)
    return SessionSecret(key.wid, key.sid, both[:32], both[32:])


def _body_cipher(key: bytes, name: str) -> AESGCM:
    return AESGCM(blake3(b"body" + name.encode(), key=key).digest())


def seal_body(key: bytes, vault: bytes, name: str, plaintext: bytes) -> bytes:
    """Encrypt the private part of the object `name` under `key` (a session's or a domain's index key)."""
    nonce = os.urandom(12)
    return nonce + _body_cipher(key, name).encrypt(nonce, plaintext, b"SH1" + vault + name.encode())


def open_body(key: bytes, vault: bytes, name: str, sealed: bytes) -> bytes:
    """Undo `seal_body`; DamageError naming the object."""
    try:
        return _body_cipher(key, name).decrypt(sealed[:12], sealed[12:], b"SH1" + vault + name.encode())
    except (InvalidTag, ValueError) as error:
        raise DamageError("sealed part does not open with its key", on=name) from error


def _chunk_cipher(session_key: bytes, identity: bytes, codec: int, plain: int) -> AESGCM:
    return AESGCM(blake3(b"chunk" + identity + struct.pack("<BI", codec, plain), key=session_key).digest())


def _aad(vault: bytes, kind: Kind, identity: bytes, codec: int, plain: int, stored: int) -> bytes:
    return b"SH1" + vault + kind.code + identity + struct.pack("<BII", codec, plain, stored)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """For level 1 with a hash table of 32 KiB instead of 64: it stays in the nearest cache, a tenth faster for 2 % more bytes."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, **({"hash_log": 13, "window_log": 19} if level == 1 else {})
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


class ChunkSealer:
    """Compresses and encrypts chunks of one session; each thread has its own, because compression contexts are not
    shared.
    """

    def __init__(self, vault: bytes, session_key: bytes, level: int) -> None:
        self._vault = vault
        self._key = session_key
        self._compressor = _compressor(level)

    def seal_into(self, out: memoryview, kind: Kind, identity: bytes, plaintext: memoryview) -> tuple[int, int]:
        """Write one record at the start of `out`; returns its length and the codec.

        `out` must hold `len(plaintext) + RECORD_OVERHEAD` bytes. Slot 0 of the pack's table is this session.
        """
        plain = len(plaintext)
        packed: memoryview | bytes = self._compressor.compress(plaintext)
        codec = _ZSTD
        if len(packed) > plain * _WORTH:
            packed, codec = plaintext, _RAW
        stored = len(packed) + RECORD_OVERHEAD
        nonce = os.urandom(12)
        out[:2] = b"\0\0"
        out[2:14] = nonce
        _chunk_cipher(self._key, identity, codec, plain).encrypt_into(
            nonce, packed, _aad(self._vault, kind, identity, codec, plain, stored), out[14:stored]
        )
        return stored, codec


class ChunkOpener:
    """Decrypts, decompresses and verifies chunks into a reused buffer; one for each thread."""

    def __init__(self, vault: bytes) -> None:
        self._vault = vault
        self._decompressor = zstandard.ZstdDecompressor()
        self._scratch = bytearray(1024 * 1024)

    def open(
        self,
        record: memoryview,
        kind: Kind,
        identity: bytes,
        codec: int,
        plain: int,
        secret: SessionSecret,
        dedup_key: bytes,
        out: memoryview | None = None,
    ) -> memoryview | bytes:
        """The plaintext of `record`: in `out`, which has to be of just its length, or else in memory that is valid until the next call.
        ValueError where it is not the chunk `identity` of that domain; `out` holds anything then.

        The plaintext is always hashed again under `dedup_key`: a record that decrypts is not yet the chunk that was
        asked for.
        """
        length = len(record) - RECORD_OVERHEAD
        if length < 0 or plain > MAX_PLAIN or codec not in (_RAW, _ZSTD) or (codec == _RAW and length != plain):
            raise ValueError("impossible lengths or codec")
        if out is not None and len(out) != plain:
            raise ValueError("content has another length than its place")
        if out is not None and codec == _RAW:
            packed = out
        else:
            if length > len(self._scratch):
                self._scratch = bytearray(length)
            packed = memoryview(self._scratch)[:length]
        aad = _aad(self._vault, kind, identity, codec, plain, len(record))
        try:
            _chunk_cipher(secret.session_key, identity, codec, plain).decrypt_into(
                bytes(record[2:14]), record[14:], aad, packed
            )
            # The library takes a frame's own word for its length, whatever limit it is given.
            if codec == _ZSTD and zstandard.frame_content_size(bytes(packed[:32])) != plain:
                raise ValueError("compressed chunk announces another length")
            data = packed if codec == _RAW else self._decompress(packed, plain, out)
        except InvalidTag as error:
            raise ValueError("does not open: its bytes are not what was stored") from error
        except zstandard.ZstdError as error:
            raise ValueError("does not unpack: it was stored broken") from error
        if len(data) != plain or chunk_id(dedup_key, data) != identity:
            raise ValueError("content does not match its id")
        return data

    def _decompress(self, packed: memoryview, plain: int, out: memoryview | None) -> memoryview | bytes:
        if out is None:
            return self._decompressor.decompress(packed, max_output_size=plain)
        # Room for all of it is there at once, so the library decodes straight into it.
        return out[: self._decompressor.stream_reader(packed).readinto(out)]
