"""Backing up: capture a resource, store it, commit the point."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import safehold
from safehold.app.downtime import Downtime, Stillness, announcement, together
from safehold.app.host import Host, process_start
from safehold.backup.disk import LANES, store_disk
from safehold.backup.stored import StoredContent
from safehold.backup.stream import store_stream
from safehold.backup.tree import store_tree
from safehold.backup.tree_cache import TreeCache
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, UsageError, VaultKeyError
from safehold.model.quiet import Quieted
from safehold.model.resource import ResourceRef
from safehold.model.shown import printable
from safehold.ports.blocks import Blocks
from safehold.ports.source import Capture, Source
from safehold.ports.tree import ByteStream, Tree
from safehold.quiesce.holding import Held, hold
from safehold.vault.catalogue import Point
from safehold.vault.records import Member, PointBody, SessionInfo
from safehold.vault.session import Session
from safehold.vault.vault import Vault

__all__ = ["BackupOptions", "BackupOutcome", "back_up", "back_up_together"]

_MOST_PROBLEMS = 1000
"""Lines about what is missing that a point carries."""


@dataclass(frozen=True)
class BackupOptions:
    """What the user asked for. `adopt` lets this host go on with a history that another host began. `downtime` makes the resource quiet
    while it is read. Of captures that were made earlier, `least_of` says what of each resource will do, and `quieted` what made it quiet then.
    `beforehand` is called with the object name of the point and with what will come of each resource, when all that is missing is the commit.
    """

    require: Consistency | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    adopt: bool = False
    downtime: Downtime | None = None
    least_of: Mapping[str, Consistency] = field(default_factory=dict)
    quieted: Mapping[str, tuple[Quieted, ...]] = field(default_factory=dict)
    beforehand: Callable[[str, Sequence[BackupOutcome]], None] = lambda name, outcomes: None

    def least(self, ref: ResourceRef) -> Consistency:
        """The least consistency that will do: what was asked for, else what the brackets promise, and at least crash for disks. What is read
        piece by piece promises none.
        """
        if ref.name in self.least_of:
            return self.least_of[ref.name]
        if self.require is not None:
            return self.require
        least = Consistency.CRASH if ref.kind == "volume" else Consistency.NONE
        return max(least, self.downtime.promises) if self.downtime else least


@dataclass(frozen=True)
class BackupOutcome:
    """A committed point and what it cost. Sizes in bytes, `seconds` of wall time. `partial` says what is missing in it,
    `pause` for how many seconds others had to wait. It is the `first` one where it follows none that is known of here; `recognised` says that
    partitions or file systems were found on a disk. `root` is the top of what was stored of the resource, in hex.
    """

    resource: str
    point: str
    size: int
    read: int
    new: int
    stored: int
    twice: int
    achieved: Consistency
    seconds: float = 0.0
    entries: int = 0
    partial: tuple[str, ...] = ()
    pause: float = 0.0
    first: bool = False
    recognised: bool = False
    root: str = ""


def back_up(
    vault: Vault, source: Source, ref: ResourceRef, host: Host, options: BackupOptions, ctx: Context
) -> BackupOutcome:
    """Make one point of one resource. See `back_up_together`."""
    return back_up_together(vault, [(source, ref)], host, options, ctx)[0]


def back_up_together(
    vault: Vault, resources: Sequence[tuple[Source, ResourceRef]], host: Host, options: BackupOptions, ctx: Context
) -> list[BackupOutcome]:
    """Make one point that has every resource as a member; what the outcomes say of `new` and `stored` is of the point as a whole.

    ConsistencyError where a resource was not as still as required, by the time its last byte was read: nothing is
    committed then. UsageError where another host goes by a resource's name, VaultKeyError where the credential may
    not write it, or was revoked.
    """

    def quieted(capture: Capture) -> tuple[Quieted, ...]:
        return options.quieted.get(capture.resource.name, ())

    vault.demand_standing()
    dedup_key = vault.writer().dedup_key
    previous = [_admit(vault, ref, host, options) for _, ref in resources]
    started, began = ctx.clock.now(), ctx.clock.monotonic()
    program = f"safehold {safehold.__version__} python {platform.python_version()}"
    info = SessionInfo(host.id, host.boot, os.getpid(), process_start(os.getpid()), program, started, ctx.run_id)
    with _reading(vault, resources, options, info, previous, ctx) as (captures, session, held):
        contents = [_store(vault, session, capture, dedup_key, ctx) for capture in captures]
        levels = [(_achieved(capture, held, options), capture.taken) for capture in captures]
        held.release()
        session.flush()
        members = [
            _member(
                vault, capture, stored, options, Stillness(achieved, taken, held.record or quieted(capture)), before
            )
            for capture, stored, (achieved, taken), before in zip(captures, contents, levels, previous, strict=True)
        ]
        body = PointBody(
            nodes=tuple(stored.root for stored in contents),
            members=tuple(members),
            host=host.name,
            host_id=host.id,
            program=program,
            run=ctx.run_id,
            started=started,
            finished=ctx.clock.now(),
            tags=dict(options.tags),
            keep=options.keep,
            adopted=options.adopt,
            read=sum(stored.read for stored in contents),
            new=session.totals.new,
            stored=session.totals.stored,
            twice=vault.stored_twice(session),
        )
        outcomes = [
            _outcome(member, session, body, stored.read) for member, stored in zip(members, contents, strict=True)
        ]
        options.beforehand(session.point, outcomes)
        name = session.commit(body)
        ctx.progress.done()
        vault.committed(name, [member.name for member in members])
        for capture in captures:
            capture.committed()
        seconds = ctx.clock.monotonic() - began
        return [replace(outcome, seconds=seconds) for outcome in outcomes]


def _admit(vault: Vault, ref: ResourceRef, host: Host, options: BackupOptions) -> Point | None:
    """The resource's newest point, where this host with this credential may go on with its history."""
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
            f"host {previous.body.host} (id {previous.body.host_id[:8]}) owns the history of {ref.name!r}, "
            f"and this is {host.name} (id {host.id[:8]})",
            on=ref.location,
            remedy="give this one a name of its own with --name, or, if it replaces that host, go on with --adopt",
        )
    if previous is not None and not ref.chosen and not options.adopt:
        _check_same_disk(previous, ref)
    return previous


def _check_same_disk(previous: Point, ref: ResourceRef) -> None:
    """Many images are called disk.img: UsageError where the history is of another one that is still there."""
    before = next(member for member in previous.body.members if member.name == ref.name)
    another = before.location and before.location != ref.location and os.path.lexists(before.location)
    if ref.kind == before.kind == "volume" and another:
        raise UsageError(
            f"the history of {ref.name!r} is that of {before.location}",
            on=ref.location,
            remedy="give this one a name of its own with --name, or, if it is the same disk, go on with --adopt",
        )


def _achieved(capture: Capture, held: Held, options: BackupOptions) -> Consistency:
    """How still the resource was held to the last byte; ConsistencyError where that is less than asked for."""
    ref = capture.resource
    achieved, require = together(capture.achieved, held.confirm()), options.least(ref)
    if achieved < require:
        written = " was being written during the backup" if capture.achieved is Consistency.NONE else ""
        raise ConsistencyError(
            f"{ref.name}{written}: {achieved.label} reached, {require.label} asked for",
            on=ref.location,
            remedy="stop what writes to it, or accept it with --require none; what was uploaded is reused",
        )
    return achieved


@contextlib.contextmanager
def _reading(
    vault: Vault,
    resources: Sequence[tuple[Source, ResourceRef]],
    options: BackupOptions,
    info: SessionInfo,
    previous: Sequence[Point | None],
    ctx: Context,
) -> Iterator[tuple[list[Capture], Session, Held]]:
    with contextlib.ExitStack() as stack:

        def capture(source: Source, ref: ResourceRef, least: Consistency) -> Capture:
            return stack.enter_context(source.capture(ref, least, ctx))

        if options.downtime is None:
            # A capture that is refused leaves no session behind.
            captures = [capture(source, ref, options.least(ref)) for source, ref in resources]
            require = max(options.least(ref) for _, ref in resources)
            yield captures, stack.enter_context(vault.session(info, LANES + 1)), Held(None, require, ctx)
            return
        down = options.downtime
        most = max(down.reaches, Consistency.FILESYSTEM)
        if options.require is not None and options.require > most:
            raise ConsistencyError(
                f"{most.label} is the most that this can reach, {options.require.label} asked for",
                on=", ".join(bracket.spec for bracket in down.brackets),
                remedy="only a hook knows of applications: --bracket hook:COMMAND; or ask for less",
            )
        # What can be done beforehand is: from `hold` on others wait.
        session = stack.enter_context(vault.session(info, LANES + 1))
        for (_, ref), before in zip(resources, previous, strict=True):
            ctx.progress.note(announcement(ref, down, before))
        asked = options.require if options.require is not None else Consistency.FILESYSTEM
        held = stack.enter_context(hold(down.brackets, down.terms, asked, ctx))
        # How quiet a clean disk is by itself is not the question: the brackets vouch for more.
        captures = [capture(source, ref, min(options.least(ref), Consistency.CRASH)) for source, ref in resources]
        if down.moment:
            held.confirm()
            held.release()
        yield captures, session, held


def _store(vault: Vault, session: Session, capture: Capture, dedup_key: bytes, ctx: Context) -> StoredContent:
    content, name = capture.content, capture.resource.name
    if isinstance(content, Tree):
        cache = TreeCache(vault.places.tree(name), vault.id, dedup_key, name, ctx)
        if cache.cold:
            ctx.progress.note(f"{name}: nothing is remembered of an earlier backup on this machine: every file is read")
        ctx.progress.start(f"backup {name}", None)
        return store_tree(session, content, dedup_key, cache, ctx)
    if isinstance(content, ByteStream):
        ctx.progress.start(f"backup {name}", None)
        return store_stream(session, content, dedup_key, ctx)
    ctx.progress.start(f"backup {name}", content.size)
    return store_disk(session, content, dedup_key, vault.parameters, ctx)


def _problems(content: Blocks | Tree | ByteStream) -> tuple[str, ...]:
    """What of the content could not be stored, one line each; the end of a long list is left out."""
    problems = content.problems if isinstance(content, Tree) else []
    told = tuple(problems[:_MOST_PROBLEMS])
    return told if len(problems) == len(told) else (*told, f"and {len(problems) - len(told)} more")


def _previous(vault: Vault, ref: ResourceRef) -> Point | None:
    """The newest point of the resource; None for a writer, who cannot read what it wrote."""
    if vault.keyring is None:
        return None
    mine = [p for p in vault.points()[0] if ref.name in p.resources]
    return mine[-1] if mine else None


def _followed(vault: Vault, ref: ResourceRef, previous: Point | None) -> str:
    """The object name of the point that the next one follows. A writer knows those of this machine alone."""
    if previous is not None:
        return previous.name
    return vault.last_made(ref.name) if vault.keyring is None else ""


def _member(
    vault: Vault,
    capture: Capture,
    stored: StoredContent,
    options: BackupOptions,
    still: Stillness,
    previous: Point | None,
) -> Member:
    return Member(
        kind=capture.resource.kind,
        name=capture.resource.name,
        root=stored.root,
        levels=stored.levels,
        size=stored.size,
        block_size=vault.parameters.block_size,
        page_refs=vault.parameters.page_refs,
        asked=options.least(capture.resource).label,
        achieved=still.achieved.label,
        taken=(still.taken.start, still.taken.end),
        pause=still.pause,
        brackets=still.brackets,
        topology=capture.topology,
        lineage=_followed(vault, capture.resource, previous).removeprefix("points/"),
        location=printable(capture.resource.location),
        more=tuple(printable(path) for path in capture.resource.more),
        entries=stored.entries,
        partial=_problems(capture.content),
    )


def _outcome(member: Member, session: Session, body: PointBody, read: int) -> BackupOutcome:
    return BackupOutcome(
        resource=member.name,
        point=session.sid.hex(),
        size=member.size,
        read=read,
        new=body.new,
        stored=session.totals.stored,
        twice=body.twice,
        achieved=Consistency.parse(member.achieved),
        entries=member.entries,
        partial=member.partial,
        pause=member.pause,
        first=not member.lineage,
        recognised=bool(member.topology and member.topology.contents),
        root=member.root.hex(),
    )
