"""`safehold diff`."""

from __future__ import annotations

import click

from safehold.app.files import FileChange, diff_files
from safehold.app.points import diff_points, member_of, parse_selector, pick
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.model.shown import printable
from safehold.model.units import format_size

__all__ = ["diff"]


@click.command()
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@vault_options
@json_option
def diff(
    old: str,
    new: str,
    access: Access,
    as_json: bool,
) -> None:
    """What changed from point OLD to point NEW: blocks of a disk, or files of a tree (with :PATH, below it); no data is read."""
    with Run.begin() as run:
        opened = run.open(access)
        pair = pick(opened, old, new)
        if member_of(pair[1], parse_selector(new).resource).kind == "tree":
            _show_files(list(diff_files(opened, pair, old, new)), as_json=as_json)
            return
        difference = diff_points(opened, pair, old, new)
    if as_json:
        print_json(
            {
                "old": difference.old.id,
                "new": difference.new.id,
                "old_size": difference.old_size,
                "new_size": difference.new_size,
                "changed": difference.changed,
                "ranges": [list(r) for r in difference.ranges],
            }
        )
        return
    for start, end in difference.ranges:
        print(f"{start:>16} {end - start:>12}  {format_size(end - start)}")
    print(
        f"{format_size(difference.changed)} of {format_size(difference.new_size)} differ, in {len(difference.ranges)} ranges"
    )
    if difference.old_size != difference.new_size:
        print(f"size: {difference.old_size} → {difference.new_size}")


_SIGNS = {"added": "+", "removed": "-", "changed": "M", "attributes": "a"}


def _show_files(changes: list[FileChange], *, as_json: bool) -> None:
    if as_json:
        told = [{"path": "/" + printable(c.path), "path_hex": c.path.hex(), "how": c.how} for c in changes]
        print_json({"changes": told})
        return
    for change in changes:
        print(f"{_SIGNS[change.how]} /{printable(change.path)}")
    counts = {how: sum(change.how == how for change in changes) for how in _SIGNS}
    print(", ".join(f"{count} {how}" for how, count in counts.items() if count) or "no differences")
