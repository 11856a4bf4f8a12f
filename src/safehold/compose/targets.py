"""Picks where a restore writes to."""

from __future__ import annotations

from contextlib import AbstractContextManager

from safehold.adapters.files.destination import check_directory, open_directory
from safehold.adapters.files.view import open_view
from safehold.adapters.image.target import check_existing, check_new, open_existing, open_new
from safehold.app.restore import RestoreMode, RestorePlan, check_single
from safehold.model.errors import UsageError
from safehold.objects.location import within
from safehold.ports.blocks import MutableBlocks
from safehold.ports.tree import TreeTarget, TreeView

__all__ = ["check_target", "keep_out", "look_below", "open_target", "open_tree_target"]


def open_target(path: str, size: int, mode: RestoreMode) -> AbstractContextManager[MutableBlocks]:
    """A new file, or an existing file or device, as the mode says. A block device is never new: it needs the mode
    said.
    """
    if mode is RestoreMode.NEW:
        return open_new(path, size)
    return open_existing(path, size)


def keep_out(target: str, vault: str) -> None:
    """UsageError where a target lies in the vault's own directory."""
    if within(target, vault):
        raise UsageError("this is in the vault itself, which it would spoil", on=target, remedy="restore elsewhere")


def check_target(plan: RestorePlan) -> None:
    """TargetError where the plan's target would be refused as it is now; nothing is written."""
    if plan.single:
        check_single(plan)
    elif plan.kind == "tree":
        check_directory(plan.target, existing=plan.mode is not RestoreMode.NEW)
    elif plan.mode is RestoreMode.NEW:
        check_new(plan.target)
    else:
        check_existing(plan.target)


def open_tree_target(path: str, mode: RestoreMode) -> AbstractContextManager[TreeTarget]:
    """A directory to restore files into: an empty or new one, unless the mode says otherwise."""
    return open_directory(path, existing=mode is not RestoreMode.NEW)


def look_below(path: str) -> TreeView:
    """What lies below a directory that files would be restored into."""
    return open_view(path)
