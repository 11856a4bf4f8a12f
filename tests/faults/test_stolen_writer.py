"""What somebody can do who holds a writer's credential file and raw access to the store, and uses none of our policy code."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from safehold.app.keys import revoke_writer
from safehold.app.verify import Depth, verify_points
from safehold.model.errors import DamageError, SafeholdError, StorePermission, VaultKeyError
from safehold.recovery.verify import verify_stored
from safehold.testing.fault_store import FaultStore
from safehold.vault.envelope import close, decode, encode, open_object
from safehold.vault.names import Kind, commit_name, kind_of, note_name, pack_name, run_name, session_name
from safehold.vault.pack import PackBuilder, PackRow, parse_header, table_span
from safehold.vault.records import (
    Certificate,
    KeySlot,
    Member,
    Note,
    PointBody,
    PointObject,
    RunObject,
    RunPack,
    SealedKey,
    SessionObject,
)
from safehold.vault.run import encode_rows, store_run
from safehold.vault.sealing import ChunkSealer, SessionSecret, chunk_id, open_secret, seal_body, seal_secret
from safehold.vault.vault import Vault
from safehold.vault.writers import WriterKey
from tests.worlds import BLOCK, World, read_back

VICTIM = b"".join(bytes([n + 1]) * BLOCK for n in range(20))
MINE = b"".join(bytes([n + 101]) * BLOCK for n in range(20))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def stolen(world: World, tmp_path: Path) -> WriterKey:
    """A credential that was used for a while, as it lies on the disk of its host."""
    writer = world.new_writer("mine*")
    world.back_up(MINE, "mine", world.open_writer(writer))
    world.back_up(VICTIM, "victim")
    return WriterKey.load(writer.export("somewhere"), on="credential")


def secrets_in(credential: WriterKey) -> list[bytes]:
    """Every 32 bytes that the credential holds, and what can be derived from each under the contexts that the format knows."""
    plain = json.loads(credential.export("x"))
    held = [
        credential.sign_seed,
        credential.dedup_key,
        credential.index_key,
        credential.owner.seal,
        credential.owner.sign,
    ]
    held += [credential.sign.public_key().public_bytes_raw(), str(plain).encode()[:32]]
    contexts = ("owner x25519", "owner ed25519", "passphrase slot", "tree page boundaries")
    return held + [
        blake3(key, derive_key_context=f"safehold 1 {context}").digest() for key in held for context in contexts
    ]


def owner_still_well(world: World) -> None:
    """The owner's old points restore, and a backup made now does so too."""
    world.back_up(VICTIM + b"more" * BLOCK, "victim", world.fresh())
    vault = world.fresh()
    points, _ = vault.points()
    mine = [p for p in points if p.body.members[0].name == "victim"]
    assert len(mine) >= 2
    for point in mine:
        assert read_back(vault, point) == world.expected[point.id]


def test_it_reads_nothing(world: World, stolen: WriterKey) -> None:
    vault = world.open_writer(stolen, machine="thief")
    for attempt in (
        vault.points,
        lambda: vault.fetcher,
        lambda: vault.owner_key,
        lambda: vault.finder(stolen.wid),
        vault.notes,
    ):
        with pytest.raises(VaultKeyError):
            attempt()
    with pytest.raises(VaultKeyError, match="may not write"):
        world.back_up(b"x", "victim", vault)


Attempt = Callable[[bytes], object]
"""Decrypts something with a key; InvalidTag where it is the wrong one."""


def by_cipher(derivation: bytes, sealed: bytes, aad: bytes) -> Attempt:
    """`nonce ‖ AES-256-GCM` under BLAKE3-keyed(key, derivation)."""
    return lambda key: AESGCM(blake3(derivation, key=key).digest()).decrypt(sealed[:12], sealed[12:], aad)


def by_hpke(sealed: bytes, info: bytes) -> Attempt:
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    return lambda key: suite.decrypt(sealed, X25519PrivateKey.from_private_bytes(key), info=info)


def sealed_parts(world: World, vault: bytes) -> Iterator[tuple[str, str, Attempt]]:
    """Everything in the store that is encrypted: what it is, the object that has it, and how to try a key on it. Ids and lengths of
    chunks are taken from the owner: a thief who guessed them too is no further.
    """
    owner = world.fresh()
    finder = owner.finder(owner.writer().wid)
    rows = {
        stamp.name: finder.read_table(stamp.name, stamp.size, owner.fetcher.read_header(stamp.name))
        for stamp in world.store.list("")
        if kind_of(stamp.name) in (Kind.PACK, Kind.META)
    }

    def session(name: str, key: SealedKey) -> tuple[str, str, Attempt]:
        return "session key", name, by_hpke(key.sealed, b"SH1 session" + vault + key.wid + key.sid)

    for stamp in list(world.store.list("")):
        name, kind, stored = stamp.name, kind_of(stamp.name), world.store.get(stamp.name)
        body_aad = b"SH1" + vault + name.encode()
        if kind in (Kind.PACK, Kind.META):
            header = parse_header(stored, vault, name)
            assert header is not None
            for key in header.sessions:
                yield session(name, key)
            start, length = table_span(len(stored), stored[-4:], name)
            yield "table", name, by_cipher(b"toc", stored[start : start + length], b"SH1" + vault + kind.code + b"toc")
            for row in rows[name]:
                lengths = struct.pack("<BI", row.codec, row.plain)
                aad = b"SH1" + vault + kind.code + row.identity + lengths + struct.pack("<I", row.stored)
                record = stored[row.offset + 2 : row.offset + row.stored]
                yield "chunk", name, by_cipher(b"chunk" + row.identity + lengths, record, aad)
            continue
        payload = open_object(name, stored).payload
        if kind is Kind.POINT:
            point = decode(payload, PointObject, name)
            yield session(name, point.key)
            yield "point", name, by_cipher(b"body" + name.encode(), point.sealed, body_aad)
        elif kind is Kind.SESSION:
            announced = decode(payload, SessionObject, name)
            yield session(name, announced.key)
            yield "session", name, by_cipher(b"body" + name.encode(), announced.sealed, body_aad)
        elif kind is Kind.WRITER:
            certificate = decode(payload, Certificate, name)
            yield "certificate", name, by_hpke(certificate.sealed, b"SH1 writer" + vault + certificate.wid)
        elif kind is Kind.KEY:
            slot = decode(payload, KeySlot, name)
            yield "key slot", name, by_hpke(slot.sealed, b"SH1 key slot" + vault + bytes.fromhex(name.split("/")[1]))
        elif kind is Kind.NOTE:
            yield "note", name, by_hpke(decode(payload, Note, name).sealed, b"SH1 note" + vault + name.encode())
        elif kind is Kind.INDEX:
            for number, frame in enumerate(decode(payload, RunObject, name).frames):
                full = f"{name}#{number}".encode()
                yield "index", name, by_cipher(b"body" + full, frame, b"SH1" + vault + full)


def test_it_decrypts_no_chunk_name_or_size_map(world: World, stolen: WriterKey) -> None:
    """Every key that can be derived from the credential is tried on every sealed part, its own past backups included. What does open is
    the index of its own domain, as docs/security.md says.
    """
    world.open().notes().add(stolen.wid, "tag", {"a": "b"})
    tried = Counter[str]()
    opened: set[tuple[str, str]] = set()
    for what, name, attempt in sealed_parts(world, stolen.vault):
        tried[what] += 1
        for key in secrets_in(stolen):
            with contextlib.suppress(InvalidTag):
                attempt(key)
                opened.add((what, name))
    own = {("index", s.name) for s in world.store.list(f"index/{stolen.wid.hex()}/")}
    assert own
    assert opened == own
    assert tried["chunk"] > 40
    everything = {"session key", "table", "chunk", "point", "session", "certificate", "key slot", "note", "index"}
    assert tried.keys() == everything
    for stamp in world.store.list(""):
        stored = world.store.get(stamp.name)
        assert b"victim" not in stored
        assert b"mine" not in stored, "not even its own resource names are in clear"


def test_the_right_keys_open_every_one_of_these_parts(world: World, stolen: WriterKey) -> None:
    """So that an attempt that cannot succeed is noticed."""
    vault = world.fresh()
    keyring = vault._require_keyring()
    secrets = [
        vault.owner_key.seal.private_bytes_raw(),
        world.private.private_bytes_raw(),
        vault.writer().index_key,
        stolen.index_key,
    ]
    for stamp in world.store.list("sessions/"):
        announced = decode(open_object(stamp.name, world.store.get(stamp.name)).payload, SessionObject, stamp.name)
        secrets.append(open_secret(vault.id, keyring, announced.key, on=stamp.name).session_key)
    for what, name, attempt in sealed_parts(world, stolen.vault):
        fitting = 0
        for key in secrets:
            with contextlib.suppress(InvalidTag):
                attempt(key)
                fitting += 1
        assert fitting == 1, (what, name)


class Thief:
    """Makes objects by the format alone."""

    def __init__(self, world: World, credential: WriterKey, dedup_key: bytes | None = None) -> None:
        self.world, self.who = world, credential
        self.sid = os.urandom(16)
        self.secret = SessionSecret(credential.wid, self.sid, os.urandom(32), dedup_key or credential.dedup_key)
        self.key = seal_secret(credential.vault, credential.owner, self.secret)
        self.certificate = world.store.get(f"writers/{credential.wid.hex()}")

    def put(self, name: str, payload: bytes) -> None:
        self.world.store.put(name, [close(self.who.vault, name, payload, self.who.sign)])

    def announce(self) -> None:
        name = session_name(self.who.wid, self.sid)
        self.put(name, encode(SessionObject(self.key, b"")))

    def pack(self, chunks: list[tuple[bytes, bytes]], kind: Kind = Kind.PACK) -> tuple[RunPack, list[PackRow]]:
        """A pack of (claimed id, content)."""
        builder = PackBuilder(kind, self.who.vault, self.key, self.secret.session_key, mmap.mmap(-1, 1 << 20), 1 << 20)
        for identity, content in chunks:
            builder.add(ChunkSealer(self.who.vault, self.secret.session_key, 1), identity, memoryview(content))
        data = bytes(builder.finish())
        name = pack_name(kind, blake3(data).digest(), "hot")
        self.world.store.put(name, [data])
        return RunPack(name, len(data)), builder.rows

    def run(
        self, pack: RunPack, rows: list[PackRow], *, wid: bytes, domain: bytes, index_key: bytes, number: int = 0
    ) -> str:
        name = run_name(wid, self.sid, number)
        stored = store_run(
            self.who.vault, name, domain, index_key, [pack], encode_rows((0, r) for r in rows), self.who.sign
        )
        self.world.store.put(name, [stored])
        return name

    def point(self, name: str, resource: str, root: bytes, **changes: object) -> None:
        member = Member("volume", resource, root, 1, BLOCK, BLOCK, 8, "crash", "crash", (0.0, 0.0))
        body = PointBody((root,), (member,), "host", "id", "forged", "run", 0.0, 0.0)
        body = msgspec.structs.replace(body, **changes)
        sealed = seal_body(self.secret.session_key, self.who.vault, name, encode(body))
        self.put(name, encode(PointObject(self.key, sealed, self.certificate)))


def test_poisoned_index_in_its_own_and_in_foreign_names(world: World, stolen: WriterKey) -> None:
    """It knows the ids of the victim's chunks (say, it guessed the contents and stole that key too) and claims to hold them."""
    victim = world.open().writer()
    ids = [chunk_id(victim.dedup_key, VICTIM[n : n + BLOCK]) for n in range(0, len(VICTIM), BLOCK)]
    new_ids = [chunk_id(victim.dedup_key, b"more" * (BLOCK // 4))]
    thief = Thief(world, stolen)
    thief.announce()
    pack, rows = thief.pack([(identity, b"garbage" * 100) for identity in [*ids, *new_ids]])
    for number, (wid, domain) in enumerate(
        [
            (stolen.wid, stolen.domain),
            (stolen.wid, victim.domain),
            (victim.wid, victim.domain),
            (victim.domain, victim.domain),
        ]
    ):
        thief.run(pack, rows, wid=wid, domain=domain, index_key=victim.index_key, number=number)
    owner_still_well(world)
    assert verify_points(world.fresh(), None, Depth.DATA, [], world.ctx).found == []


def test_garbage_under_a_guessed_id_beside_its_own_point(world: World, stolen: WriterKey) -> None:
    """Even inside of its own domain garbage is not restored as right."""
    thief = Thief(world, stolen)
    pack, rows = thief.pack([(chunk_id(stolen.dedup_key, b"expected"), b"garbage!")])
    thief.run(pack, rows, wid=stolen.wid, domain=stolen.domain, index_key=stolen.index_key)
    vault = world.fresh()
    with pytest.raises(DamageError):
        vault.fetcher.one(vault.finder(stolen.wid), chunk_id(stolen.dedup_key, b"expected"), stolen.dedup_key)
    owner_still_well(world)


def test_squatting_on_another_resources_name(world: World, stolen: WriterKey) -> None:
    thief = Thief(world, stolen)
    thief.point(commit_name(stolen.wid, thief.sid), "victim", bytes(32))
    points, rejected = world.fresh().points()
    assert [r.name for r in rejected] == [commit_name(stolen.wid, thief.sid)]
    assert "may not make points of 'victim'" in rejected[0].reason
    assert all(p.wid != stolen.wid for p in points if "victim" in p.resources)
    owner_still_well(world)
    assert rejected[0].name in {f.on for f in verify_points(world.fresh(), None, Depth.STRUCTURE, [], world.ctx).found}


def test_forged_points_and_sessions_of_another_writer(world: World, stolen: WriterKey) -> None:
    victim = world.open().writer()
    thief = Thief(world, stolen)
    thief.put(session_name(victim.wid, thief.sid), encode(SessionObject(thief.key, b"")))
    thief.point(commit_name(victim.wid, thief.sid), "victim", bytes(32))
    _, rejected = world.fresh().points()
    assert [r.name for r in rejected] == [commit_name(victim.wid, thief.sid)]
    owner_still_well(world)


def test_forged_time(world: World, stolen: WriterKey) -> None:
    """Times inside of a point prove nothing: the store's clock orders them."""
    thief = Thief(world, stolen)
    thief.point(commit_name(stolen.wid, thief.sid), "mine", bytes(32), started=4e9, finished=4e9)
    world.back_up(MINE, "mine", world.open_writer(stolen))
    points, _ = world.fresh().points()
    mine = [p for p in points if "mine" in p.resources]
    assert mine[-1].body.program != "forged"
    assert mine[-1].time == max(p.time for p in mine)


def test_rubbish_everywhere(world: World, stolen: WriterKey) -> None:
    """Unreadable objects under every prefix it can reach, and under some it cannot."""
    for name in (
        f"index/{stolen.wid.hex()}/{'0' * 32}-000000",
        f"points/{stolen.wid.hex()}/{'1' * 32}",
        f"sessions/{stolen.wid.hex()}/{'2' * 32}",
        f"points/{'3' * 32}/{'3' * 32}",
        f"writers/{'4' * 32}",
        f"notes/{'5' * 32}/000000",
        f"packs/hot/66/{'6' * 64}",
        f"meta/77/{'7' * 64}",
        "points/nonsense",
        "index/nonsense",
        "notes/nonsense",
    ):
        world.store.put(name, [os.urandom(300)])
    owner_still_well(world)
    assert len(verify_stored(world.store, world.ctx).found) >= 11


def test_hostile_trees_end_in_errors(world: World, stolen: WriterKey) -> None:
    """Points that a writer made to mislead the reader: impossible sizes, levels and pages."""
    for changes in (
        {"levels": 60},
        {"size": 1 << 62},
        {"size": -1},
        {"root": b"short"},
        {"block_size": 0},
        {"page_refs": 0},
        {"block_size": 1 << 40, "size": 1 << 50},
        {"levels": 0},
    ):
        thief = Thief(world, stolen)
        member = msgspec.structs.replace(
            Member("volume", "mine", os.urandom(32), 1, BLOCK, BLOCK, 8, "crash", "crash", (0.0, 0.0)), **changes
        )
        thief.point(commit_name(stolen.wid, thief.sid), "mine", bytes(32), members=(member,))
        vault = world.fresh()
        point = next(p for p in vault.points()[0] if p.sid == thief.sid)
        with pytest.raises(SafeholdError):
            read_back(vault, point)
        assert verify_points(vault, None, Depth.DATA, [], world.ctx).found
    owner_still_well(world)


def test_a_revoked_writer_makes_no_more_points(world: World, stolen: WriterKey) -> None:
    revoke_writer(world.open(), stolen.wid.hex())
    with pytest.raises(VaultKeyError, match="was revoked"):
        world.back_up(MINE + b"x", "mine", world.open_writer(stolen))
    with pytest.MonkeyPatch.context() as patch:
        # A thief's program does not look.
        patch.setattr(Vault, "demand_standing", lambda vault: None)
        world.back_up(MINE + b"x", "mine", world.open_writer(stolen))
    points, rejected = world.fresh().points()
    assert len([p for p in points if "mine" in p.resources]) == 1, "what it wrote before stays"
    assert "after its writer was revoked" in rejected[0].reason
    assert f"→ safehold point expire @{rejected[0].id[:8]}" in rejected[0].problem


def test_what_a_writer_sees_of_its_revocation(world: World, stolen: WriterKey) -> None:
    """The owner's signature on a note about it, or where it may not read that, the name; nobody else's."""
    name = note_name(stolen.wid, 0)
    world.store.put(name, [b"forged"])
    world.back_up(MINE + b"1", "mine", world.open_writer(stolen))
    world.store.delete(name)
    world.store.put(name, [close(stolen.vault, name, encode(Note(0, b"")), stolen.sign)])
    world.back_up(MINE + b"2", "mine", world.open_writer(stolen))
    revoke_writer(world.open(), stolen.wid.hex())
    store = FaultStore(world.store)
    store.fail("get", "notes/", error=lambda: StorePermission("may not"), times=10**9)
    with pytest.raises(VaultKeyError, match="was revoked"):
        world.back_up(MINE + b"3", "mine", world.open_writer(stolen, store))
    store.fail("list", "notes/", error=lambda: StorePermission("may not"), times=10**9)
    world.back_up(MINE + b"4", "mine", world.open_writer(stolen, store))
