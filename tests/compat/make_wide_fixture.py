"""Makes tests/compat/vault-v1-wide.tar.xz: a vault of small packs and pages with everything that version 1 writes. Run once and then never
again: the file is what the past wrote.

python -m tests.compat.make_wide_fixture
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from safehold.app.backup import BackupOptions, back_up_together
from safehold.app.host import Host
from safehold.app.opening import Credentials, open_vault
from safehold.compose.wiring import open_stores
from safehold.model.context import Context
from safehold.model.resource import ResourceRef
from safehold.objects.local import LocalStore
from safehold.testing.program import Program
from safehold.vault.create import create_vault
from safehold.vault.envelope import close, encode
from safehold.vault.names import session_name
from safehold.vault.places import Places
from safehold.vault.records import Heartbeat, NoteBody, Parameters
from safehold.vault.slots import Passphrase
from safehold.vault.vault import Vault
from tests.compat.contents import DATABASE, GROUP, STREAM, tree
from tests.compat.make_fixture import HERE, anonymous
from tests.worlds import BytesDisk, BytesSource

RECIPIENT = bytes(range(32))
"""The X25519 private key of a recipient's slot."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        ctx = Context()
        parameters = Parameters(block_size=4096, pack_size=65_536, page_refs=8)
        create_vault(LocalStore(work / "vault"), Passphrase("first words"), parameters, "first", ctx)
        program = Program(work / "home", {"SAFEHOLD_VAULT": str(work / "vault"), "SAFEHOLD_PASSPHRASE": "first words"})
        _fill(work, program)
        with tarfile.open(HERE / "vault-v1-wide.tar.xz", "w:xz") as archive:
            for name in ("vault", "points.json"):
                archive.add(work / name, name, filter=anonymous)


def _fill(work: Path, program: Program) -> None:
    disk = work / "database.img"
    for content in DATABASE[:2]:
        disk.write_bytes(content)
        program.run("backup", disk, "--require", "crash")
    tree(work / "tree")
    program.run("backup", work / "tree", "--name", "files", "--keep-until-deleted")
    command = [str(Path(sys.executable).parent / "safehold"), "backup", "-", "--name", "dump", "--tag", "kind=nightly"]
    subprocess.run(command, input=STREAM, env=program._environment({}), check=True, stdout=subprocess.DEVNULL)
    program.run("point", "tag", "dump@latest", "checked=yes")
    program.run("point", "hold", "dump@latest", "--reason", "evidence")
    # A backup that dies before its commit, and the prune that fences it.
    disk.write_bytes(os.urandom(20_000))
    assert program.crash("points/", "before", work / "report", "backup", disk).returncode < 0
    program.run("point", "expire", "database", "--keep-last", "1", "--yes")
    program.run("vault", "prune")
    program.run("key", "rotate", "--yes", "--kit-file", work / "kit.txt", SAFEHOLD_NEW_PASSPHRASE="second words")
    program.environment["SAFEHOLD_PASSPHRASE"] = "second words"
    public = X25519PrivateKey.from_private_bytes(RECIPIENT).public_key()
    (work / "public.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    program.run("key", "add", "--recipient", work / "public.pem", "--label", "recipient")
    disk.write_bytes(DATABASE[2])
    program.run("backup", disk)
    _by_hand(work)
    program.run("verify", "--data")
    (work / "points.json").write_text(program.run("points", "--json").stdout)


def _by_hand(work: Path) -> None:
    """What needs a volume service or an hour: a point of two disks, a heartbeat, a pin."""
    ctx = Context()
    places = Places(work / "home/state", work / "home/cache")
    stores = open_stores(str(work / "vault"), ctx.clock)
    vault = open_vault(stores, Credentials(unlocker=Passphrase("second words")), places, ctx)
    disks = [(BytesSource(BytesDisk(bytearray(d))), ResourceRef("volume", name, name)) for name, d in GROUP.items()]
    back_up_together(vault, disks, Host("host", "id", "boot"), BackupOptions(), ctx)
    _beat(vault)
    dump = next(point for point in vault.points()[0] if point.resources == ("dump",))
    vault.expiry().pin(dump.wid, dump.sid, NoteBody("mount", ctx.clock.now(), {"on": "host"}))


def _beat(vault: Vault) -> None:
    point = next(point for point in vault.points()[0] if "left" in point.resources)
    name = session_name(point.wid, point.sid, 1)
    vault.store.put(name, [close(vault.id, name, encode(Heartbeat(1)), vault.writer().sign)])


if __name__ == "__main__":
    main()
