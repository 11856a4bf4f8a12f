"""Backups, prunes, expiry and readers stopped at any call to the store while others run; actors that die; puts that arrive late.

No committed, unexpired point ever loses a byte; what nothing needs goes away in the end; a backup is never refused for a prune's sake unless
it was taken for dead. Mistakes planted into the protocol are found.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safehold.model.errors import DamageError, FencedError, ObjectExists, SafeholdError
from safehold.objects.memory import MemoryStore
from safehold.ports.store import Store
from safehold.recovery.disk import Losses, write_disk
from safehold.testing.fault_store import Killed
from safehold.testing.interleave import InterleavedStore
from safehold.vault.gc import listed, runs
from safehold.vault.gc.preview import Preview
from safehold.vault.gc.prune import Prune
from safehold.vault.gc.sessions import OpenSession
from safehold.vault.names import Kind, kind_of
from safehold.vault.session import Session
from safehold.vault.trust import Chain
from safehold.vault.vault import Vault
from tests.worlds import BLOCK, QUICK, BytesDisk, World

CONTENTS = [bytes([65 + n]) * BLOCK for n in range(10)]


@dataclass
class History:
    """One seeded history."""

    folder: Path
    seed: int
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.world = World(self.folder, store=MemoryStore())
        self.by_name: dict[str, bytes] = {}
        self.expired: set[str] = set()
        self.number = self.disks = 0
        self.busy: list[int] = []
        self.fencing = self.rng.choice([0.0, 0.0, 0.3, 1.0])
        # Years in a moment: dead names leave the chain at once, and runs are made into base runs always.
        self.listed = self.rng.choice([0.0, listed.LISTED])
        self.runs = self.rng.choice([0, 3, 128])
        self.pool = CONTENTS[: self.rng.choice([1, 2, 10])]
        self.story: list[str] = []

    # -- actors ------------------------------------------------------------------------------------------------------

    def play(self) -> None:
        for _ in range(self.rng.randrange(3, 8)):
            self.act(0)
        self.finish()

    def act(self, depth: int) -> None:
        """One actor, at a random call of which another may step in, or it may die."""
        self.number += 1
        kind = self.rng.choice(
            ["backup", "backup", "backup", "prune", "prune", "prune", "expire", "expire", "read", "late"]
        )
        store: Store = self.world.store
        if depth < 3 and self.rng.random() < 0.75:
            at = self.rng.randrange(1, 70)
            happens: Callable[[], None] = lambda: self.act(depth + 1)  # noqa: E731
            if self.rng.random() < 0.25:
                happens = self.die
            elif self.rng.random() < 0.4:
                happens = lambda: (self.act(depth + 1), self.act(depth + 1))[0]  # type: ignore[func-returns-value]  # noqa: E731
            store = InterleavedStore(store, at, happens)
        self.story.append(f"{'  ' * depth}{self.number} {kind}")
        # Machines come back with what they remember, but none is in two places at once.
        machine = self.rng.choice([n for n in range(7) if n not in self.busy])
        self.busy.append(machine)
        try:
            getattr(self, kind)(self.world.open(store, f"actor-{machine}"))
        except Killed:
            self.story.append(f"{'  ' * depth}  … died")
        except SafeholdError as error:
            self.story.append(f"{'  ' * depth}  … {error}")
            if not self.allowed(kind, error):
                self.wrong.append(f"{kind}: {error!r} {error}")
        finally:
            self.busy.remove(machine)

    def die(self) -> None:
        raise Killed

    def allowed(self, kind: str, error: SafeholdError) -> bool:
        """A backup may be taken for dead; prunes may get in each other's way; a point may be expired while it is read."""
        if isinstance(error, FencedError):
            return kind == "backup" and self.fencing > 0
        return kind == "prune" and "other prunes" in str(error)

    def backup(self, vault: Vault) -> None:
        self.disks += 1
        name = f"disk-{self.disks}"
        blocks = self.rng.choices(self.pool, k=self.rng.choice([1, 1, 2, 12]))
        self.by_name[name] = b"".join(blocks)
        self.world.back_up(self.by_name[name], name, vault)

    def prune(self, vault: Vault) -> None:
        dead: Callable[[OpenSession, float], bool] = lambda session, now: self.rng.random() < self.fencing  # noqa: E731
        vault.expiry().collect(vault.store_time())
        Prune(vault, self.folder, dead, self.world.ctx).run()

    def expire(self, vault: Vault) -> None:
        points = vault.points()[0]
        if points:
            point = self.rng.choice(points)
            self.expired.add(point.body.members[0].name)
            vault.expiry().forget(point.wid, point.sid)
            if self.rng.random() < 0.5:
                vault.expiry().collect(vault.store_time())

    def read(self, vault: Vault) -> None:
        points = vault.points()[0]
        if points:
            self.check(vault, self.rng.choice(points).id)

    def late(self, vault: Vault) -> None:
        """A put of long ago arrives a second time."""
        if self.kept:
            name, data = self.rng.choice(self.kept)
            if kind_of(name) is Kind.INDEX and not self.listed:
                # It names packs that left the chain's list of the dead: it would come more than 30 days late.
                return
            try:
                self.world.store.put(name, [data])
            except ObjectExists:
                pass

    @property
    def kept(self) -> list[tuple[str, bytes]]:
        """Objects that were there once: writers' own, which the network may hold and deliver again."""
        mine = (Kind.SESSION, Kind.PACK, Kind.META, Kind.INDEX, Kind.POINT)
        for stamp in self.world.store.list(""):
            if kind_of(stamp.name) in mine and self.rng.random() < 0.2:
                self.late_puts.setdefault(stamp.name, self.world.store.get(stamp.name))
        return sorted(self.late_puts.items())

    late_puts: dict[str, bytes] = field(default_factory=dict)

    # -- judgement ---------------------------------------------------------------------------------------------------

    def check(self, vault: Vault, identity: str) -> None:
        for point in vault.points()[0]:
            member = point.body.members[0]
            if point.id != identity:
                continue
            target = BytesDisk(bytearray(b"\xff" * member.size))
            try:
                write_disk(vault.disk(point, member), target, Losses(False), vault.ctx)
            except DamageError as error:
                if member.name not in self.expired:
                    self.wrong.append(f"point of {member.name} cannot be read: {error}")
                continue
            if bytes(target.data) != self.by_name[member.name]:
                self.wrong.append(f"point of {member.name} is another")

    def check_all(self) -> None:
        vault = self.world.fresh()
        for point in vault.points()[0]:
            self.check(vault, point.id)

    def finish(self) -> None:
        self.check_all()
        self.fencing = 1.0
        try:
            # One finishes what others began, one condemns what that left, one lets go of what moved: two more than that are enough.
            for _ in range(5):
                self.prune(self.world.fresh())
        except SafeholdError as error:
            self.wrong.append(f"the last prune: {error}")
            return
        self.check_all()
        vault = self.world.fresh()
        needed = {p.sid for p in vault.points()[0]}
        left = [s.name for s in self.world.store.list("packs/")]
        if not needed and left:
            self.wrong.append(f"{len(left)} packs are left that nothing needs")
        report = Preview(vault, self.folder, lambda session, now: True, self.world.ctx).run()
        if report.condemned_packs:
            self.wrong.append(f"{report.condemned_packs} packs are left that nothing needs: {report}")
        if list(self.world.store.list("sessions/")):
            self.wrong.append("sessions are left")


def failures(seeds: range, most: int = 1) -> list[str]:
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(dir=QUICK) as folder:
            history = History(Path(folder), seed)
            try:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(listed, "LISTED", history.listed)
                    patch.setattr(runs, "MOST_RUNS", history.runs)
                    patch.setattr(runs, "_SHARD_ROWS", 7)
                    history.play()
            except SafeholdError as error:
                history.wrong.append(f"the vault does not open: {error}")
        if history.wrong:
            found.append(f"seed {seed}: {history.wrong}\n" + "\n".join(history.story))
            if len(found) >= most:
                break
    return found


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_histories(first: int) -> None:
    assert failures(range(first, first + 250)) == []


@pytest.mark.soak
@pytest.mark.parametrize("first", range(10_000, 110_000, 5000))
def test_long_histories(first: int) -> None:
    assert failures(range(first, first + 5000)) == []


def _no_condemned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "unusable_packs", property(lambda self: frozenset(self.record.dead)))


def _no_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Prune, "_sessions_ended", lambda self, awaited: True)


def _no_second_look(patch: pytest.MonkeyPatch) -> None:
    right = Prune._mark

    def mark(self: Prune, chain: Chain, avoid: frozenset[str], movable: dict[str, int] | None = None) -> object:
        chosen = right(self, chain, avoid, movable)
        chosen.packs = {name: size for name, size in chosen.packs.items() if name not in avoid}
        return chosen

    patch.setattr(Prune, "_mark", mark)


def _chain_overwritten(patch: pytest.MonkeyPatch) -> None:
    right = Prune._create

    def create(self: Prune, chain: Chain, **changes: object) -> bool:
        keep, self._store = self._store, _Overwriting(self._store)  # type: ignore[assignment]
        try:
            return right(self, chain, **changes)
        finally:
            self._store = keep

    patch.setattr(Prune, "_create", create)


class _Overwriting:
    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def put(self, name: str, parts: object) -> object:
        return self._inner.put(name, parts, create_only=False)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


def _commit_over_a_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Session, "_commit_object", lambda self, name, stored: self._direct.put(name, [stored], create_only=False)
    )


def _view_before_session(patch: pytest.MonkeyPatch) -> None:
    right = Session.announce
    patch.setattr(Session, "announce", lambda self: None)
    commit = Session.commit

    def late(self: Session, body: object) -> str:
        right(self)
        return commit(self, body)  # type: ignore[arg-type]

    patch.setattr(Session, "commit", late)


MISTAKES = {
    "condemned packs are deduplicated against": _no_condemned,
    "sessions are not waited for": _no_waiting,
    "points are not looked at again": _no_second_look,
    "the chain is overwritten": _chain_overwritten,
    "a commit overwrites its fence": _commit_over_a_fence,
    "the view is taken before the session is announced": _view_before_session,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[mistake](monkeypatch)
    assert failures(range(3000))
