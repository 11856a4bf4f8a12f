"""Restoring a disk from a point onto a target."""

from __future__ import annotations

import enum
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from safehold.app.points import member_of, parse_selector, select
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.ports.blocks import MutableBlocks
from safehold.recovery.disk import Losses, write_differences, write_disk
from safehold.vault.catalogue import Point
from safehold.vault.vault import Vault

__all__ = ["RestoreMode", "RestoreOutcome", "RestorePlan", "TargetOpener", "plan_restore", "restore"]


class RestoreMode(enum.Enum):
    """Onto a new file; over what is there; or only where what is there differs."""

    NEW = "new"
    OVERWRITE = "overwrite"
    DELTA = "delta"


TargetOpener = Callable[[str, int, RestoreMode], AbstractContextManager[MutableBlocks]]
"""Opens a target by path, size in bytes and mode."""


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do: which member of which point, its size in bytes, and how it meets the target."""

    point: Point
    resource: str
    size: int
    target: str
    mode: RestoreMode


@dataclass(frozen=True)
class RestoreOutcome:
    """Bytes written as data, zeroed, and kept; ranges that were lost (only a salvage goes on past one), and why."""

    plan: RestorePlan
    data: int
    zeroed: int
    kept: int
    lost: list[tuple[int, int]]
    lost_text: str
    reasons: list[str]
    seconds: float


def plan_restore(vault: Vault, selector: str, target: str, mode: RestoreMode) -> RestorePlan:
    """UsageError where the selector names nothing that can be written onto a disk."""
    parsed = parse_selector(selector)
    if parsed.path:
        raise UsageError(
            "paths inside of a disk cannot be restored by themselves",
            on=selector,
            remedy="restore the whole disk and mount it",
        )
    points, rejected = vault.points()
    for one in rejected:
        vault.ctx.progress.warn(f"not a valid point: {one.name}: {one.reason}")
    point = select(points, selector)
    member = member_of(point, parsed.resource)
    if member.kind != "volume":
        raise UsageError(f"a {member.kind} cannot be restored onto a disk", on=selector, remedy="use a newer safehold")
    return RestorePlan(point, member.name, member.size, target, mode)


def restore(
    vault: Vault, plan: RestorePlan, open_target: TargetOpener, *, salvage: bool, ctx: Context
) -> RestoreOutcome:
    """Carry the plan out. DamageError, naming objects and byte ranges, where something cannot be read and this is no
    salvage.
    """
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
        written.zeroed,
        written.kept,
        sorted(losses.ranges),
        losses.spelled(),
        losses.reasons,
        ctx.clock.monotonic() - began,
    )
