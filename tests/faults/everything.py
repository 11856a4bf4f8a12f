"""A vault with an object of every kind, and ways to hurt copies of it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from safehold.app.keys import add_key
from safehold.model.errors import SafeholdError
from safehold.objects.memory import MemoryStore
from safehold.recovery.disk import Losses
from safehold.vault.envelope import close, encode
from safehold.vault.names import Kind, forget_name, gc_name, kind_of, log_name, pin_name
from safehold.vault.records import Forget, GcRecord, LogPiece, Pin, SealedKey
from safehold.vault.slots import Recipient
from tests.worlds import BLOCK, World, read_back

FORMAT = Path(__file__).parents[2] / "docs/format.md"
_ROW = re.compile(r"^\| `([a-z.]+)` \| `[^|]+` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Listed:
    """What docs/format.md says of a kind: its code, who signs it, and who finds another valid version under the name."""

    prefix: str
    code: str
    signed_by: str
    claim: str

    @property
    def kind(self) -> Kind:
        return next(kind for kind in Kind if kind.prefix == self.prefix)


TABLE = [Listed(*row) for row in _ROW.findall(FORMAT.read_text())]
LISTED = [listed.prefix for listed in TABLE]


def disk(seed: int) -> bytes:
    """40 blocks: five pages, some holes, several packs."""
    return b"".join(bytes([n % 5 and (seed if n == 7 else n)]) * BLOCK if n % 7 else bytes(BLOCK) for n in range(40))


def random_disk(seed: int) -> bytes:
    return random.Random(seed).randbytes(24 * BLOCK) + bytes(4 * BLOCK) + b"tail"


def everything(root: Path) -> World:
    """A vault with at least two objects of every kind, `vault.json` aside."""
    world = World(root)
    world.back_up(disk(1))
    world.back_up(disk(2))
    world.back_up(random_disk(3), "other")
    writer = world.new_writer("foreign")
    world.back_up(random_disk(4), "foreign", world.open_writer(writer))
    vault = world.open()
    owner, own = vault.owner_key, vault.writer()
    vault.notes().add(vault.id, "kit", {})
    vault.notes().add(vault.id, "kit", {})

    def put(name: str, payload: bytes, signer: object) -> None:
        world.store.put(name, [close(vault.id, name, payload, signer)])  # type: ignore[arg-type]

    for n in range(2):
        put(pin_name(bytes([n] * 16)), encode(Pin(0, "a/b", b"sealed")), owner.sign)
        put(forget_name(f"points/a/{n}"), encode(Forget(0, f"a/{n}")), owner.sign)
        key = SealedKey(own.wid, bytes(16), 0, 1, b"sealed")
        put(log_name(own.wid, bytes(16), 1, n), encode(LogPiece(key, b"piece")), own.sign)
    put(
        gc_name(1),
        encode(GcRecord(number=1, previous=vault.chain.digest, generation=0, owner=owner.public)),
        owner.sign,
    )

    add_key(world.open(), world.unlock(), Recipient(world.private.public_key().public_bytes_raw()), "second")
    return world


def names(world: World, kind: Kind) -> list[str]:
    return [s.name for s in world.store.list("") if kind_of(s.name) is kind]


def copy(world: World) -> MemoryStore:
    store = MemoryStore()
    for stamp in world.store.list(""):
        store.put(stamp.name, [world.store.get(stamp.name)])
    return store


def never_wrong(world: World, store: MemoryStore) -> int:
    """Restore what can be opened on a machine that knows nothing; every byte that comes back is right. Returns how many points did."""
    right = 0
    try:
        vault = world.fresh(store)
        points, _ = vault.points()
    except SafeholdError:
        return right
    for point in points:
        try:
            restored = read_back(vault, point)
        except SafeholdError:
            losses = Losses(True)
            salvaged = read_back(vault, point, losses)
            assert losses.ranges, "a failed restore names what is lost"
            lost = {n for start, end in losses.ranges for n in range(start // BLOCK, -(-end // BLOCK))}
            whole = world.expected[point.id]
            for n in range(-(-len(whole) // BLOCK)):
                if n not in lost:
                    assert salvaged[n * BLOCK : (n + 1) * BLOCK] == whole[n * BLOCK : (n + 1) * BLOCK]
        else:
            assert restored == world.expected[point.id]
            right += 1
    return right
