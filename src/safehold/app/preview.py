"""What a restore of files would write, found without writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from safehold.app.points import member_of
from safehold.app.restore import RestoreMode, RestorePlan
from safehold.model.context import Context
from safehold.model.errors import DamageError
from safehold.ports.tree import TreeView
from safehold.recovery.comparing import Change, Difference, difference
from safehold.recovery.selection import Selection, selected_pages
from safehold.vault.tree import EntryAt, Gap
from safehold.vault.vault import Vault

__all__ = ["preview"]


def preview(vault: Vault, plan: RestorePlan, look: Callable[[str], TreeView], ctx: Context) -> Iterator[Change]:
    """Each thing that the restore of a tree would write; in the mode DELTA only where what is there differs, but for a single file. Content is
    read at the target and compared by its hash; none of it is fetched.
    """
    tree, chunks = vault.tree(plan.point, member_of(plan.point, plan.resource)), vault.chunks(plan.point)
    if plan.single:
        found = tree.find(plan.path)
        assert found is not None
        yield Change(os.fsencode(os.path.basename(os.path.abspath(plan.target))), Difference.MISSING, found.entry.size)
        return
    there = look(plan.target) if plan.mode is RestoreMode.DELTA else None
    for page in selected_pages(tree, Selection(plan.path, plan.include)):
        if isinstance(page, Gap):
            raise DamageError(
                f"{page.told} cannot be read: {page.reason}", on=plan.resource, remedy="restore another point"
            )
        for path, one in page:
            ctx.cancel.check()
            how = Difference.MISSING if there is None else difference(one, path, there, chunks)
            if how is not None:
                yield Change(path, how, _size(one, how))


def _size(found: EntryAt, how: Difference) -> int:
    return 0 if how is Difference.ATTRIBUTES else found.entry.size
