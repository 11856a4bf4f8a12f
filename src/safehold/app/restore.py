"""Restoring a disk, files or a stream from a point."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from safehold.app.files import tree_path
from safehold.app.points import member_of, parse_selector, pick
from safehold.model.context import Context
from safehold.model.errors import DamageError, TargetError, UsageError
from safehold.ports.blocks import MutableBlocks
from safehold.ports.tree import Problem, TreeTarget
from safehold.recovery.disk import Losses, write_differences, write_disk
from safehold.recovery.selection import Selection
from safehold.recovery.tree import FileLosses, stream_data, write_one, write_tree
from safehold.vault.catalogue import Point
from safehold.vault.fetch import ChunkReader
from safehold.vault.tree import EntryAt
from safehold.vault.vault import Vault

__all__ = [
    "RestoreMode",
    "RestoreOutcome",
    "RestorePlan",
    "TargetOpener",
    "TreeOpener",
    "check_single",
    "plan_restore",
    "restore",
]


class RestoreMode(enum.Enum):
    """Onto a new file; over what is there; or only where what is there differs."""

    NEW = "new"
    OVERWRITE = "overwrite"
    DELTA = "delta"


TargetOpener = Callable[[str, int, RestoreMode], AbstractContextManager[MutableBlocks]]
"""Opens a target disk by path, size in bytes and mode."""

TreeOpener = Callable[[str, RestoreMode], AbstractContextManager[TreeTarget]]
"""Opens a target directory by path and mode."""


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do: which member of which point, its size in bytes, and how it meets the target.

    `path` is what of a tree is meant, from its top; `include` takes paths below it. A `single` one is no directory: `target` is then the
    very place that it takes, also where the user named a directory to put it into.
    """

    point: Point
    resource: str
    kind: str
    size: int
    target: str
    mode: RestoreMode
    path: bytes = b""
    include: Callable[[bytes], bool] | None = None
    single: bool = False


@dataclass(frozen=True)
class RestoreOutcome:
    """Bytes written as data, zeroed, and kept; entries of a tree, and files among them that were right already.

    `lost` are byte ranges of a disk that could not be read (only a salvage goes on past one), `lost_text` the same or the files for
    people, `reasons` why; `problems` is what could not be made or set at the target.
    """

    plan: RestorePlan
    data: int
    seconds: float
    zeroed: int = 0
    kept: int = 0
    entries: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    lost_text: str = ""
    reasons: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def plan_restore(
    vault: Vault,
    selector: str,
    target: str,
    mode: RestoreMode,
    include: Callable[[bytes], bool] | None = None,
) -> RestorePlan:
    """UsageError where the selector names nothing that can be restored. A single file goes into a `target` that is a directory, or is written
    like one, under its own name, as with cp(1).
    """
    parsed = parse_selector(selector)
    (point,) = pick(vault, selector)
    member = member_of(point, parsed.resource)
    if member.kind not in ("volume", "tree", "stream"):
        raise UsageError(f"a {member.kind} cannot be restored", on=selector, remedy="use a newer safehold")
    if member.kind != "tree" and (parsed.path or include):
        raise UsageError(
            f"there are no paths in a {member.kind}",
            on=selector,
            remedy="restore all of it" + ("; then mount it" if member.kind == "volume" else ""),
        )
    path = tree_path(parsed.path)
    try:
        found = vault.tree(point, member).find(path) if path else None
        there = not path or found is not None
    except DamageError:
        # A page that would tell cannot be read: the restore says so, or goes on past it.
        found, there = None, True
    if not there:
        raise UsageError(
            "no such file or directory in this point",
            on=selector,
            remedy=f"see what there is: safehold ls {parsed.resource}@{parsed.when}",
        )
    single = found is not None and not found.entry.is_directory
    if single and (target.endswith("/") or os.path.isdir(target)):
        target = os.path.join(target, os.fsdecode(os.path.basename(path)))
    return RestorePlan(point, member.name, member.kind, member.size, target, mode, path, include, single)


def check_single(plan: RestorePlan) -> None:
    """TargetError where the place of a single file is taken and may not be written over. A directory never is: what lies in it was not meant."""
    if not os.path.lexists(plan.target):
        return
    if os.path.isdir(plan.target) and not os.path.islink(plan.target):
        raise TargetError(
            "a directory has this name, and a file does not take its place",
            on=plan.target,
            remedy="restore into another directory, or to another name",
        )
    if plan.mode is RestoreMode.NEW:
        raise TargetError("target exists", on=plan.target, remedy="say --overwrite, or restore elsewhere")


def restore(
    vault: Vault, plan: RestorePlan, open_target: TargetOpener, open_tree: TreeOpener, *, salvage: bool, ctx: Context
) -> RestoreOutcome:
    """Carry the plan out. DamageError, naming objects and byte ranges or files, where something cannot be read and this is no
    salvage.
    """
    if plan.kind == "tree":
        return _restore_tree(vault, plan, open_tree, salvage=salvage, ctx=ctx)
    if plan.kind == "stream":
        return _restore_stream(vault, plan, open_target, salvage=salvage, ctx=ctx)
    began = ctx.clock.monotonic()
    losses = Losses(salvage)
    disk = vault.disk(plan.point, member_of(plan.point, plan.resource))
    with open_target(plan.target, plan.size, plan.mode) as target:
        ctx.progress.start(f"restore {plan.resource}", plan.size)
        write = write_differences if plan.mode is RestoreMode.DELTA else write_disk
        written = write(disk, target, losses, ctx)
        ctx.progress.done()
    return RestoreOutcome(
        plan,
        written.data,
        ctx.clock.monotonic() - began,
        zeroed=written.zeroed,
        kept=written.kept,
        lost=sorted(losses.ranges),
        lost_text=losses.spelled(),
        reasons=losses.reasons,
    )


def _restore_tree(
    vault: Vault, plan: RestorePlan, open_tree: TreeOpener, *, salvage: bool, ctx: Context
) -> RestoreOutcome:
    began = ctx.clock.monotonic()
    losses = FileLosses(salvage)
    tree = vault.tree(plan.point, member_of(plan.point, plan.resource))
    chunks = vault.chunks(plan.point)
    base, target, include = plan.path, plan.target, plan.include
    try:
        found = tree.find(base) if base else None
    except DamageError:
        if not salvage:
            raise
        # What it is nobody can tell; below a directory there may be something all the same.
        found = None
    if found is not None and not found.entry.is_directory:
        target, name = os.path.split(os.path.abspath(target))
        return _restore_file(plan, found, name, target, chunks, losses, open_tree, ctx)
    with open_tree(target, plan.mode) as where:
        ctx.progress.start(f"restore {plan.resource}", None if base or include else plan.size)
        written = write_tree(
            tree, chunks, Selection(base, include), where, losses, ctx, compare=plan.mode is RestoreMode.DELTA
        )
        ctx.progress.done()
        problems = where.problems
    return RestoreOutcome(
        plan,
        written.data,
        ctx.clock.monotonic() - began,
        kept=written.kept,
        entries=written.entries,
        lost_text=", ".join(one.partition(": ")[0] for one in losses.found),
        reasons=losses.found,
        problems=problems,
    )


def _restore_file(
    plan: RestorePlan,
    found: EntryAt,
    name: str,
    directory: str,
    chunks: ChunkReader,
    losses: FileLosses,
    open_tree: TreeOpener,
    ctx: Context,
) -> RestoreOutcome:
    began = ctx.clock.monotonic()
    check_single(plan)
    with open_tree(directory, RestoreMode.OVERWRITE) as where:
        write_one(found, os.fsencode(name), where, chunks, losses)
        problems = where.problems
    arrived = not any(problem.absent for problem in problems)
    return RestoreOutcome(
        plan,
        found.entry.size if arrived else 0,
        ctx.clock.monotonic() - began,
        entries=int(arrived),
        lost_text=", ".join(one.partition(": ")[0] for one in losses.found),
        reasons=losses.found,
        problems=problems,
    )


def _restore_stream(
    vault: Vault, plan: RestorePlan, open_target: TargetOpener, *, salvage: bool, ctx: Context
) -> RestoreOutcome:
    began = ctx.clock.monotonic()
    member = member_of(plan.point, plan.resource)
    losses = FileLosses(salvage)
    wrote = 0
    with open_target(plan.target, plan.size, plan.mode) as target:
        ctx.progress.start(f"restore {plan.resource}", plan.size)
        if plan.mode is not RestoreMode.NEW:
            target.write_zeroes(0, member.size)
        for at, data in stream_data(
            member, vault.chunks(plan.point), lambda reason: losses.add(plan.resource.encode(), reason)
        ):
            ctx.cancel.check()
            target.write(at, memoryview(data))
            wrote += len(data)
            ctx.progress.advance(len(data))
        target.flush()
        ctx.progress.done()
    return RestoreOutcome(
        plan,
        wrote,
        ctx.clock.monotonic() - began,
        lost_text="; ".join(losses.found),
        reasons=losses.found,
    )
