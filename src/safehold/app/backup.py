"""Backing up: capture a resource, store it, commit the point."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safehold
from safehold.backup.disk import LANES, store_disk
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, UsageError, VaultKeyError
from safehold.model.resource import ResourceRef
from safehold.ports.source import Capture, Source
from safehold.vault.catalogue import Point
from safehold.vault.records import Member, PointBody, SessionInfo
from safehold.vault.session import Session
from safehold.vault.vault import Vault

__all__ = ["BackupOptions", "BackupOutcome", "Host", "back_up", "this_host"]


@dataclass(frozen=True)
class Host:
    """Who makes the backup: a name for people, an id that stays with the machine, and the boot that is running."""

    name: str
    id: str
    boot: str


@dataclass(frozen=True)
class BackupOptions:
    """What the user asked for. `adopt` lets this host go on with a history that another host began."""

    require: Consistency = Consistency.CRASH
    tags: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    adopt: bool = False


@dataclass(frozen=True)
class BackupOutcome:
    """A committed point and what it cost. Sizes in bytes, `seconds` of wall time, `pause` of quiet."""

    resource: str
    point: str
    size: int
    read: int
    new: int
    stored: int
    twice: int
    achieved: Consistency
    seconds: float


def this_host(state: Path) -> Host:
    """This machine.

    Its id is what the file `host-id` in `state` says (a rebuilt host that got its state back goes on as the same one), else the
    operating system's machine id, else one that is made up once and kept.
    """
    return Host(socket.gethostname(), _host_id(state), _read(Path("/proc/sys/kernel/random/boot_id")))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _host_id(state: Path) -> str:
    known = _read(state / "host-id") or _read(Path("/etc/machine-id"))
    if not known:
        known = os.urandom(16).hex()
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state / "host-id").write_text(known + "\n")
    return known


def _process_start() -> int:
    """When this process started, in clock ticks since boot: with pid and boot id it names a process for good."""
    stat = _read(Path("/proc/self/stat"))
    return int(stat.rpartition(")")[2].split()[19]) if stat else 0


def back_up(
    vault: Vault, source: Source, ref: ResourceRef, host: Host, options: BackupOptions, ctx: Context
) -> BackupOutcome:
    """Make one point of one resource.

    ConsistencyError where the resource was not as still as required, by the time its last byte was read: nothing is
    committed then. UsageError where another host goes by the resource's name, VaultKeyError where the credential may
    not write it.
    """
    writer = vault.writer()
    if not writer.may_write(ref.name):
        raise VaultKeyError(
            f"this credential may not write {ref.name!r}",
            on=writer.label,
            remedy="it allows: " + ", ".join(writer.resources),
        )
    previous = _previous(vault, ref)
    if previous is not None and previous.body.host_id != host.id and not options.adopt:
        raise UsageError(
            f"host {previous.body.host} owns the history of {ref.name!r}, and this is {host.name}",
            on=ref.location,
            remedy="give this one a name of its own with --name, or, if it replaces that host, go on with --adopt",
        )
    started, began = ctx.clock.now(), ctx.clock.monotonic()
    program = f"safehold {safehold.__version__} python {platform.python_version()}"
    info = SessionInfo(host.id, host.boot, os.getpid(), _process_start(), program, started, ctx.run_id)
    with source.capture(ref, options.require, ctx) as capture, vault.session(info, LANES + 1) as session:
        ctx.progress.start(f"backup {ref.name}", capture.content.size)
        tree = store_disk(session, capture.content, writer.dedup_key, vault.parameters, ctx)
        session.flush()
        achieved = capture.achieved
        if achieved < options.require:
            raise ConsistencyError(
                f"{ref.name} was being written during the backup: {achieved.label} reached, {options.require.label} asked for",
                on=ref.location,
                remedy="stop what writes to it, or accept it with --require none; what was uploaded is reused",
            )
        member = _member(vault, capture, tree.root, tree.levels, options, achieved, previous)
        body = PointBody(
            nodes=(tree.root,),
            members=(member,),
            host=host.name,
            host_id=host.id,
            program=program,
            run=ctx.run_id,
            started=started,
            finished=ctx.clock.now(),
            tags=dict(options.tags),
            keep=options.keep,
            read=tree.read,
            new=session.totals.new,
            stored=session.totals.stored,
            twice=vault.stored_twice(session),
        )
        name = session.commit(body)
        ctx.progress.done()
        vault.committed(name)
        return _outcome(ref, session, body, member, ctx.clock.monotonic() - began)


def _previous(vault: Vault, ref: ResourceRef) -> Point | None:
    """The newest point of the resource; None for a writer, who cannot read what it wrote."""
    if vault.keyring is None:
        return None
    mine = [p for p in vault.points()[0] if ref.name in p.resources]
    return mine[-1] if mine else None


def _member(
    vault: Vault,
    capture: Capture,
    root: bytes,
    levels: int,
    options: BackupOptions,
    achieved: Consistency,
    previous: Point | None,
) -> Member:
    return Member(
        kind=capture.resource.kind,
        name=capture.resource.name,
        root=root,
        levels=levels,
        size=capture.content.size,
        block_size=vault.parameters.block_size,
        page_refs=vault.parameters.page_refs,
        asked=options.require.label,
        achieved=achieved.label,
        taken=(capture.taken.start, capture.taken.end),
        topology=capture.topology,
        lineage=previous.name.removeprefix("points/") if previous else "",
        location=capture.resource.location,
    )


def _outcome(ref: ResourceRef, session: Session, body: PointBody, member: Member, seconds: float) -> BackupOutcome:
    return BackupOutcome(
        resource=ref.name,
        point=session.sid.hex(),
        size=member.size,
        read=body.read,
        new=body.new,
        stored=session.totals.stored,
        twice=body.twice,
        achieved=Consistency.parse(member.achieved),
        seconds=seconds,
    )
