"""A volume's snapshots on their way to the vault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from safehold.app.backup import BackupOptions, BackupOutcome, back_up_together
from safehold.app.host import Host
from safehold.backup.disk import BaseGone
from safehold.blocks.held import HeldVolume
from safehold.blocks.layout import Attempt, Lineage, Snapshot
from safehold.blocks.sealed import SealedDisk
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import FailedError, ObjectNotFound
from safehold.model.resource import ResourceRef
from safehold.model.topology import Topology
from safehold.ports.blocks import Blocks
from safehold.ports.source import Capture, Interval
from safehold.vault.disk_builder import root_of
from safehold.vault.node import Node, encode_node
from safehold.vault.sealing import chunk_id
from safehold.vault.vault import Vault

__all__ = [
    "Committed",
    "Described",
    "SealedCapture",
    "SealedSource",
    "Stored",
    "Torn",
    "commit",
    "complete",
    "next_group",
]

Described = Callable[[Blocks], Topology]
"""Says what lies on a disk."""

Sealed = tuple[HeldVolume, Snapshot]
Torn = tuple[HeldVolume, Snapshot, str]
"""A snapshot that cannot become a point, and why."""


class SealedCapture:
    """A sealed epoch. See `ports.source.Capture`: it stands still whatever is written meanwhile."""

    def __init__(self, ref: ResourceRef, content: SealedDisk, snapshot: Snapshot, topology: Topology) -> None:
        self.resource = ref
        self.content = content
        self.topology: Topology | None = topology
        self.taken = Interval(*snapshot.taken)
        self.achieved = Consistency.parse(snapshot.achieved)

    def committed(self) -> None:
        """What there is to remember is remembered with the point's name, by `complete`."""


class SealedSource:
    """`ports.source.Source` of the one snapshot that is next in each volume."""

    def __init__(self, held: HeldVolume, snapshot: Snapshot, known: int, describe: Described) -> None:
        """`known` as for `SealedDisk`."""
        self._held, self._snapshot, self._known, self._describe = held, snapshot, known, describe

    def resolve(self, spec: str) -> ResourceRef | None:
        """Nothing: snapshots are not named on the command line of a backup."""
        return None

    @contextlib.contextmanager
    def capture(self, ref: ResourceRef, require: Consistency, ctx: Context) -> Iterator[Capture]:
        """The sealed epoch."""
        disk = SealedDisk(self._held.epochs, self._snapshot.epoch, known=self._known, ids=self._held.ids)
        yield SealedCapture(ref, disk, self._snapshot, self._describe(disk))


@dataclass(frozen=True)
class Stored:
    """What came of one volume's snapshot: the lineage that follows from it, and how many bytes were read and stored."""

    lineage: Lineage
    read: int
    stored: int


@dataclass(frozen=True)
class Committed:
    """A snapshot that is a point of its vault already, and its members by the names of their volumes, which may not know it yet."""

    snapshot: str
    point: str
    members: Mapping[str, Stored]


def next_group(
    volumes: Sequence[HeldVolume], postponed: Container[str], unfinished: Container[str] = ()
) -> tuple[list[Sealed], list[Torn]]:
    """The snapshot that is to go to its vault next, with all volumes that were sealed at its instant; empty where there is none but those
    `postponed`, those that nobody has vouched for yet, and those of volumes that are `unfinished`: their last point is committed, and
    they do not know it. And instead of it what is left of a snapshot of which a member was lost: it will never be the instant that was asked for.
    Unless it was sent: the others may know already that it is a point, or be gone. Then that is what goes next.
    """
    heads = {
        held.name: (held, held.record.pending[0])
        for held in volumes
        if held.record.pending and held.name not in unfinished
    }
    for held, snapshot in sorted(heads.values(), key=lambda head: head[1].taken):
        names = snapshot.group or (held.name,)
        group = [heads[name] for name in names if name in heads and heads[name][1].id == snapshot.id]
        if len(group) == len(names):
            # Whoever vouches does so for one after the other.
            if all(mine.vouched for _, mine in group) and snapshot.id not in postponed:
                return group, []
            continue
        if any(not _waits(name, snapshot.id, volumes) for name in names):
            if all(mine.attempt for _, mine in group):
                if snapshot.id in postponed:
                    continue
                return group, []
            why = f"{_lost(names, snapshot.id, volumes)} lost its part of it"
            return [], [(one, mine, why) for one, mine in group]
    return [], []


def _waits(name: str, identity: str, volumes: Sequence[HeldVolume]) -> bool:
    return any(s.id == identity for held in volumes if held.name == name for s in held.record.pending)


def _lost(names: Sequence[str], identity: str, volumes: Sequence[HeldVolume]) -> str:
    return ", ".join(name for name in names if not _waits(name, identity, volumes))


def commit(vault: Vault, group: Sequence[Sealed], host: Host, describe: Described, ctx: Context) -> Committed:
    """Make the recovery point of one instant, unless an earlier attempt has, of which nobody was told. FailedError where a snapshot can never
    become one (it is marked so, and the next one compares everything); other errors leave it pending.
    """
    came_of = _came_to_be(vault, group)
    if came_of is not None:
        return came_of
    for held, snapshot in group:
        held.demand_pending(snapshot.id)
    rest = set(group[0][1].group) - {held.name for held, _ in group}
    if rest:
        _fail(group, f"{', '.join(sorted(rest))} has no part of it any more, and its point is not there", compare=False)
    _forget(group)
    unit = vault.parameters.block_size
    for held, _ in group:
        if held.record.block % unit:
            _fail(
                group,
                f"the vault has blocks of {unit} bytes, and {held.name} of {held.record.block}: copy it to a new volume",
            )
    here, known = _here(vault), {held.name: 0 for held, _ in group}
    for held, snapshot in group:
        lineage = held.record.lineage
        if lineage is None:
            continue
        if (lineage.vault, lineage.domain) != here:
            wrong = "the vault or the writer is another one than that of the volume's last point"
        elif lineage.root and lineage.root != _root(vault, held, lineage):
            wrong = "what was noted here of the volume's last point is damaged"
        else:
            known[held.name] = lineage.size
            continue
        if not snapshot.full:
            _fail(group, wrong)
    snapshot = group[0][1]
    attempts: list[str] = []

    def beforehand(name: str, outcomes: Sequence[BackupOutcome]) -> None:
        # All of it was read by now, and may have been read after something was lost.
        for held, mine in group:
            held.demand_read(mine.id)
        attempts.append(name)
        # Where there is no room for it: two points of one instant, should nobody be told of the first, are better than none.
        with contextlib.suppress(OSError):
            for (held, mine), outcome in zip(group, outcomes, strict=True):
                held.attempt(mine.id, Attempt(name, outcome.point, outcome.root, outcome.read, outcome.stored))

    options = BackupOptions(
        tags=snapshot.tags,
        least_of={held.name: Consistency.parse(mine.asked) for held, mine in group},
        quieted={held.name: mine.quiet for held, mine in group},
        beforehand=beforehand,
    )
    resources = []
    for held, mine in group:
        ref = ResourceRef("volume", held.name, f"volume:{held.name}")
        resources.append((SealedSource(held, mine, known[held.name], describe), ref))
    try:
        outcomes = back_up_together(vault, resources, host, options, ctx)
    except BaseGone as error:
        _fail(group, str(error))
    except BaseException:
        if not attempts:
            _forget(group)
        raise
    return _committed(vault, group, outcomes)


def _came_to_be(vault: Vault, group: Sequence[Sealed]) -> Committed | None:
    """What an earlier attempt made of the group, where the vault has its point and each volume the ids that go with it."""
    attempts = [mine.attempt for _, mine in group if mine.attempt is not None]
    if len(attempts) < len(group) or len({attempt.name for attempt in attempts}) != 1:
        return None
    if not all(held.ids.kept(attempt.point) for (held, _), attempt in zip(group, attempts, strict=True)):
        return None
    try:
        vault.store.head(attempts[0].name)
    except ObjectNotFound:
        return None
    vault.committed(attempts[0].name, [held.name for held, _ in group])
    return _committed(vault, group, attempts)


def _committed(vault: Vault, group: Sequence[Sealed], came_of: Sequence[Attempt | BackupOutcome]) -> Committed:
    identity, domain = _here(vault)
    members = {
        held.name: Stored(Lineage(identity, mine.point, held.record.size, domain, mine.root), mine.read, mine.stored)
        for (held, _), mine in zip(group, came_of, strict=True)
    }
    return Committed(group[0][1].id, came_of[0].point, members)


def complete(committed: Committed, volumes: Sequence[HeldVolume]) -> None:
    """Have the volumes of a snapshot know its point. OSError; it is to be tried again then, for another commit would be another point."""
    for held in volumes:
        stored = committed.members.get(held.name)
        if stored is not None:
            held.complete_snapshot(committed.snapshot, stored.lineage, read=stored.read, stored=stored.stored)


def _root(vault: Vault, held: HeldVolume, lineage: Lineage) -> str:
    """What the ids that are noted of the last point come to; nothing where they cannot be read."""
    parameters, dedup_key = vault.parameters, vault.writer().dedup_key
    blocks = -(-lineage.size // parameters.block_size)

    def identify(node: Node) -> bytes:
        return chunk_id(dedup_key, encode_node(node))

    try:
        return root_of(blocks, parameters.page_refs, held.ids.joined, identify).hex()
    except OSError:
        return ""


def _here(vault: Vault) -> tuple[str, str]:
    return vault.id.hex(), vault.writer().domain.hex()


def _forget(group: Sequence[Sealed]) -> None:
    for held, _ in group:
        held.ids.forget()


def _fail(group: Sequence[Sealed], why: str, *, compare: bool = True) -> NoReturn:
    _forget(group)
    for held, snapshot in group:
        held.fail_snapshot(snapshot, why, compare=compare)
    raise FailedError(
        why,
        on=", ".join(held.name for held, _ in group),
        remedy="take another snapshot" + (": it compares everything" if compare else ""),
    )
