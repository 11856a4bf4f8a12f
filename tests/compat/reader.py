"""A second reader of vaults, written from docs/format.md alone: it imports nothing of Safehold.

Slow and strict: every trailer, signature and id is checked, and all packs are read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

Record = dict[str, Any]
ZERO = bytes(32)
CODES = {
    "keys": b"k",
    "writers": b"w",
    "sessions": b"s",
    "index": b"i",
    "points": b"p",
    "notes": b"n",
    "pins": b"x",
    "forget": b"f",
    "gc": b"g",
}
HPKE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def keyed(key: bytes, message: bytes) -> bytes:
    return blake3(message, key=key).digest()


def derived(secret: bytes, context: str) -> bytes:
    return blake3(secret, derive_key_context=context).digest()


def unpack(data: bytes) -> Any:
    return msgspec.msgpack.decode(data)


@dataclass(frozen=True)
class Place:
    """Where a record lies, and what is needed to open it."""

    pack: bytes
    offset: int
    stored: int
    plain: int
    codec: int
    session_keys: tuple[bytes, ...]
    code: bytes


@dataclass(frozen=True)
class Point:
    """A point, opened."""

    name: str
    body: Record
    dedup_key: bytes


@dataclass(frozen=True)
class File:
    """What a tree has at one path."""

    entry: Record
    content: bytes


class Reader:
    """The vault in a directory, opened with a passphrase or with the private key of a recipient."""

    def __init__(self, root: Path, passphrase: str = "", private: X25519PrivateKey | None = None) -> None:
        self._root = root
        raw = self.stored("vault.json")
        assert blake3(b"vault.json\0" + raw[:-32]).digest() == raw[-32:]
        self.document = json.loads(raw[:-32])
        self.vault = bytes.fromhex(self.document["id"])
        seeds, document = self._unlock(passphrase.encode(), private)
        assert document == raw[:-32], "the copy in the key slot is what counts"
        self._seal = {
            n: X25519PrivateKey.from_private_bytes(derived(s, "safehold 1 owner x25519")) for n, s in seeds.items()
        }
        signers = {
            n: Ed25519PrivateKey.from_private_bytes(derived(s, "safehold 1 owner ed25519")) for n, s in seeds.items()
        }
        self._sign = {n: key.public_key().public_bytes_raw() for n, key in signers.items()}
        self._chunks: dict[bytes, list[Place]] | None = None

    # -- objects

    def names(self, prefix: str) -> list[str]:
        return sorted(p.relative_to(self._root).as_posix() for p in (self._root / prefix).rglob("*") if p.is_file())

    def stored(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def payload(self, name: str, stored: bytes = b"") -> tuple[Record, bytes, bytes]:
        """The record in an object; its signature, and what that is over."""
        stored = stored or self.stored(name)
        kind = name.split("/")[0]
        body, trailer = stored[:-32], stored[-32:]
        assert blake3(name.encode() + b"\0" + body).digest() == trailer, name
        assert body[:4] == b"SH1" + CODES[kind], name
        if kind == "keys":
            return unpack(body[4:]), b"", b""
        signed, signature = body[:-64], body[-64:]
        full = name.encode()
        return (
            unpack(signed[4:]),
            signature,
            b"SH1 signature" + self.vault + struct.pack("<H", len(full)) + full + signed,
        )

    def by_owner(self, name: str, stored: bytes = b"") -> Record:
        """A record that the owner signed."""
        record, signature, signed = self.payload(name, stored)
        Ed25519PublicKey.from_public_bytes(self._sign[record["generation"]]).verify(signature, signed)
        return record

    def by_writer(self, name: str, certificate: Record) -> Record:
        """A record that a writer signed."""
        record, signature, signed = self.payload(name)
        Ed25519PublicKey.from_public_bytes(certificate["verify"]).verify(signature, signed)
        return record

    # -- keys

    def _unlock(self, passphrase: bytes, private: X25519PrivateKey | None) -> tuple[dict[int, bytes], bytes]:
        for name in self.names("keys"):
            slot, _, _ = self.payload(name)
            aad = b"SH1 key slot" + self.vault + bytes.fromhex(name.split("/")[1])
            kdf, recipient, sealed = slot.get("kdf"), slot.get("recipient"), slot["sealed"]
            if kdf and passphrase:
                costs = {"iterations": kdf["iterations"], "lanes": kdf["lanes"], "memory_cost": kdf["memory"]}
                stretched = Argon2id(salt=kdf["salt"], length=32, **costs).derive(passphrase)
                key = derived(stretched, "safehold 1 passphrase slot")
                opened = unpack(AESGCM(key).decrypt(sealed[:12], sealed[12:], aad))
            elif recipient and private and recipient == private.public_key().public_bytes_raw():
                opened = unpack(HPKE.decrypt(sealed, private, info=aad))
            else:
                continue
            return {g["number"]: g["seed"] for g in opened["generations"]}, opened["document"]
        raise LookupError("no key slot fits")

    def _unseal(self, generation: int, sealed: bytes, info: bytes) -> bytes:
        return HPKE.decrypt(sealed, self._seal[generation], info=info)

    def _session(self, key: Record) -> tuple[bytes, bytes]:
        """Session key and dedup key."""
        assert key["suite"] == 1
        info = b"SH1 session" + self.vault + key["wid"] + key["sid"]
        both = self._unseal(key["generation"], key["sealed"], info)
        return both[:32], both[32:]

    def _private(self, key: bytes, name: str, sealed: bytes) -> bytes:
        cipher = AESGCM(keyed(key, b"body" + name.encode()))
        return cipher.decrypt(sealed[:12], sealed[12:], b"SH1" + self.vault + name.encode())

    # -- chunks

    def _packs(self) -> Iterator[tuple[str, bytes, list[tuple[bytes, Place]]]]:
        for name in [*self.names("packs"), *self.names("meta")]:
            pack = self.stored(name)
            assert blake3(pack).hexdigest() == name.rsplit("/", 1)[1]
            code = b"d" if name.startswith("packs/") else b"m"
            assert pack[:6] == b"SHPK\x01" + code
            (sessions,) = struct.unpack_from("<H", pack, 6)
            assert pack[8:24] == self.vault
            at, keys = 24, []
            for _ in range(sessions):
                wid, sid, generation, suite, length = struct.unpack_from("<16s16sHHH", pack, at)
                sealed = pack[at + 38 : at + 38 + length]
                keys.append(
                    self._session({"wid": wid, "sid": sid, "generation": generation, "suite": suite, "sealed": sealed})[
                        0
                    ]
                )
                at += 38 + length
            (length,) = struct.unpack("<I", pack[-4:])
            table = pack[-4 - length : -4]
            rows = AESGCM(keyed(keys[0], b"toc")).decrypt(table[:12], table[12:], b"SH1" + self.vault + code + b"toc")
            places = []
            for identity, offset, stored, mixed in struct.iter_unpack("<32sIII", rows):
                places.append(
                    (identity, Place(pack, offset, stored, mixed & 0xFFFFFFF, mixed >> 28, tuple(keys), code))
                )
            yield name, pack, places

    def chunk(self, identity: bytes, dedup_key: bytes) -> bytes:
        """A chunk's plaintext."""
        if self._chunks is None:
            self._chunks = {}
            for _, _, places in self._packs():
                for found, place in places:
                    self._chunks.setdefault(found, []).append(place)
        place = self._chunks[identity][0]
        record = place.pack[place.offset : place.offset + place.stored]
        lengths = struct.pack("<BI", place.codec, place.plain)
        session_key = place.session_keys[struct.unpack_from("<H", record)[0]]
        cipher = AESGCM(keyed(session_key, b"chunk" + identity + lengths))
        aad = b"SH1" + self.vault + place.code + identity + lengths + struct.pack("<I", place.stored)
        data = cipher.decrypt(record[2:14], record[14:], aad)
        plain = zstandard.ZstdDecompressor().decompress(data) if place.codec == 1 else data
        assert len(plain) == place.plain
        assert keyed(dedup_key, plain) == identity
        return plain

    def check_index(self) -> int:
        """Every row of every index run is in the table of contents of the pack that it names. Returns how many rows there are."""
        there = {
            (name, i, p.offset, p.stored, p.plain, p.codec) for name, _, places in self._packs() for i, p in places
        }
        sizes = {name: len(pack) for name, pack, _ in self._packs()}
        index_keys, certificates = {}, {}
        for name in self.names("writers"):
            certificate = self.by_owner(name)
            info = b"SH1 writer" + self.vault + certificate["wid"]
            secret = unpack(self._unseal(certificate["generation"], certificate["sealed"], info))
            index_keys[certificate["domain"]] = secret["index_key"]
            certificates[certificate["wid"].hex()] = certificate
        rows = 0
        for name in self.names("index"):
            run, _, _ = self.payload(name)
            run = self.by_owner(name) if run["base"] else self.by_writer(name, certificates[name.split("/")[1]])
            assert not run["base"] or name.split("/")[1] == run["domain"].hex()
            plain = b"".join(
                self._private(index_keys[run["domain"]], f"{name}#{n}", frame) for n, frame in enumerate(run["frames"])
            )
            packs = [pack["name"] for pack in run["packs"]]
            assert all(sizes.get(pack["name"], pack["size"]) == pack["size"] for pack in run["packs"])
            ids = []
            for identity, number, offset, stored, mixed in struct.iter_unpack("<32sIIII", plain):
                if packs[number] in sizes:
                    assert (packs[number], identity, offset, stored, mixed & 0xFFFFFFF, mixed >> 28) in there
                ids.append(identity)
            assert ids == sorted(ids)
            assert len(ids) == run["rows"]
            rows += len(ids)
        return rows

    # -- points

    def points(self) -> list[Point]:
        """Every point: fences are left out, and what the owner expired."""
        forgotten = {self.by_owner(name)["point"] for name in self.names("forget")}
        pinned = {self.by_owner(name)["point"] for name in self.names("pins")}
        found = []
        for name in self.names("points"):
            if not self.stored(name) or name.removeprefix("points/") in forgotten - pinned:
                continue
            record, _, _ = self.payload(name)
            certificate = self.by_owner(f"writers/{name.split('/')[1]}", record["certificate"])
            self.by_writer(name, certificate)
            session_key, dedup_key = self._session(record["key"])
            found.append(Point(name, unpack(self._private(session_key, name, record["sealed"])), dedup_key))
        return found

    def notes(self, point: Point) -> list[Record]:
        """What the owner noted about a point, in order."""
        subject = blake3(point.name.encode()).hexdigest()[:32]
        notes = []
        for name in self.names(f"notes/{subject}"):
            record = self.by_owner(name)
            notes.append(
                unpack(self._unseal(record["generation"], record["sealed"], b"SH1 note" + self.vault + name.encode()))
            )
        return notes

    def chain(self) -> list[Record]:
        """The gc records, each with the hash of the one before."""
        records, before = [], b""
        for number, name in enumerate(self.names("gc")):
            record = self.by_owner(name)
            assert record["number"] == number
            assert record["previous"] == before
            for run in record.get("base", []):
                if (self._root / run["name"]).exists():
                    assert blake3(self.stored(run["name"])).digest() == run["digest"]
            before = blake3(self.stored(name)).digest()
            records.append(record)
        return records

    # -- contents

    def _node(self, point: Point, identity: bytes) -> Record:
        return {"nodes": b"", "chunks": b"", "body": b""} | unpack(self.chunk(identity, point.dedup_key))

    def volume(self, point: Point, member: Record) -> bytes:
        """A disk."""
        blocks = -(-member["size"] // member["block_size"])
        ids = self._block_ids(point, member, member["root"], member["levels"], blocks) if blocks else []
        assert len(ids) == blocks
        data = b"".join(bytes(member["block_size"]) if i == ZERO else self.chunk(i, point.dedup_key) for i in ids)
        # The last block may be short: of zeros, it is cut here.
        return data[: member["size"]]

    def _block_ids(self, point: Point, member: Record, page: bytes, level: int, blocks: int) -> list[bytes]:
        """The ids of so many blocks, which a page of that level is above."""
        if page == ZERO:
            return [ZERO] * blocks
        node = self._node(point, page)
        assert node["kind"] == ("disk.leaf" if level == 1 else "disk.inner")
        ids = split(node["chunks"] if level == 1 else node["nodes"])
        if level == 1:
            return ids
        below = member["page_refs"] ** (level - 1)
        out: list[bytes] = []
        for number, child in enumerate(ids):
            out += self._block_ids(point, member, child, level - 1, min(below, blocks - number * below))
        return out

    def stream(self, point: Point, member: Record) -> bytes:
        """What came through standard input."""
        data = b"" if member["root"] == ZERO else self._parts(point, member["root"])
        assert len(data) == member["size"]
        return data

    def _parts(self, point: Point, identity: bytes) -> bytes:
        node = self._node(point, identity)
        lengths = unpack(node["body"])
        if node["kind"] == "file.index":
            pieces = [self._parts(point, i) for i in split(node["nodes"])]
        else:
            assert node["kind"] == "file.parts"
            pieces = [
                bytes(n) if i == ZERO else self.chunk(i, point.dedup_key)
                for i, n in zip(split(node["chunks"]), lengths, strict=True)
            ]
        assert [len(piece) for piece in pieces] == lengths
        return b"".join(pieces)

    def tree(self, point: Point, member: Record) -> dict[bytes, File]:
        """Every entry of a tree by its path."""
        files = {}
        for parent, entry, node in self._entries(point, member["root"], member["levels"]):
            path = parent + b"/" + entry["name"] if parent else entry["name"]
            files[path] = File(entry, self._file(point, entry, node))
        assert len(files) == member.get("entries", 0)
        return files

    def _entries(self, point: Point, page: bytes, level: int) -> Iterator[tuple[bytes, Record, Record]]:
        node = self._node(point, page)
        if level > 1:
            assert node["kind"] == "tree.inner"
            for child in split(node["nodes"]):
                yield from self._entries(point, child, level - 1)
            return
        assert node["kind"] == "tree.leaf"
        for parent, entries in unpack(node["body"]):
            for fields in entries:
                yield parent, ENTRY | dict(zip(ENTRY, fields, strict=False)), node

    def _file(self, point: Point, entry: Record, node: Record) -> bytes:
        content, size = entry["content"], entry["size"]
        chunks = split(node["chunks"])
        if entry["form"] == 0:
            data = b""
        elif entry["form"] == 1:
            data = self.chunk(chunks[content[0]], point.dedup_key)[content[1] : content[1] + size]
            assert keyed(point.dedup_key, data)[:16] == entry["digest"]
        elif entry["form"] == 2:
            pairs = zip(content[::2], content[1::2], strict=True)
            data = b"".join(bytes(n) if at < 0 else self.chunk(chunks[at], point.dedup_key) for at, n in pairs)
        else:
            data = self._parts(point, split(node["nodes"])[content[0]])
        assert len(data) == size
        return data


ENTRY: Record = {
    "name": b"", "mode": 0, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "ctime": 0, "ino": 0, "fs": 0, "links": 1, "rdev": 0,
    "target": b"", "xattrs": {}, "form": 0, "content": [], "digest": b"",
}  # fmt: skip


def split(ids: bytes) -> list[bytes]:
    return [ids[at : at + 32] for at in range(0, len(ids), 32)]
