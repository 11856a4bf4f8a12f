"""`safehold points`, `point list|show` and `diff`."""

from __future__ import annotations

import click

from safehold.app.points import diff_points, select
from safehold.cli.running import Access, Run, json_option, print_json, print_table, vault_options
from safehold.model.context import Context
from safehold.model.units import format_duration, format_size, format_time
from safehold.vault.catalogue import Point
from safehold.vault.records import Member
from safehold.vault.vault import Vault

__all__ = ["diff", "point", "point_document", "points", "read_points"]


def read_points(opened: Vault, ctx: Context) -> list[Point]:
    """The vault's points; what is none is warned of."""
    found, rejected = opened.points()
    for one in rejected:
        ctx.progress.warn(f"not a valid point: {one.name}: {one.reason}")
    return found


@click.command()
@click.argument("resource", required=False)
@vault_options
@json_option
def points(
    resource: str | None,
    access: Access,
    as_json: bool,
) -> None:
    """List the points, oldest first: all of them, or those of one RESOURCE."""
    with Run.begin() as run:
        found = read_points(run.open(access), run.ctx)
    found = [p for p in found if resource is None or resource in p.resources]
    if as_json:
        print_json({"points": [point_document(p) for p in found]})
        return
    if not found:
        print("no points" + (f" of {resource}" if resource else ""))
        return
    rows = [
        [p.id[:8], format_time(p.time), m.name, format_size(m.size), format_size(p.body.stored), m.achieved, _tags(p)]
        for p in found
        for m in p.body.members
    ]
    print_table(["ID", "TIME", "RESOURCE", "SIZE", "ADDED", "CONSISTENCY", "TAGS"], rows)


def _tags(p: Point) -> str:
    return ",".join(f"{key}={value}" for key, value in p.body.tags.items())


def point_document(p: Point) -> dict[str, object]:
    """A point as JSON."""
    body = p.body
    return {
        "id": p.id,
        "name": p.name,
        "digest": p.digest.hex(),
        "time": p.time,
        "host": body.host,
        "program": body.program,
        "run": body.run,
        "started": body.started,
        "finished": body.finished,
        "tags": body.tags,
        "keep_until_deleted": body.keep,
        "read": body.read,
        "new": body.new,
        "stored": body.stored,
        "stored_twice": body.twice,
        "members": [_member_document(member) for member in body.members],
    }


def _member_document(member: Member) -> dict[str, object]:
    topology = member.topology
    return {
        "kind": member.kind,
        "name": member.name,
        "location": member.location,
        "size": member.size,
        "block_size": member.block_size,
        "consistency_asked": member.asked,
        "consistency": member.achieved,
        "taken": list(member.taken),
        "pause": member.pause,
        "follows": member.lineage,
        "format": topology.format if topology else "",
        "contents": [
            {"type": c.type, "offset": c.offset, "uuid": c.uuid, "label": c.label}
            for c in (topology.contents if topology else ())
        ],
    }


@click.group()
def point() -> None:
    """Look at points."""


point.add_command(points, "list")


@point.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@vault_options
@json_option
def show(selector: str, access: Access, as_json: bool) -> None:
    """Everything that is known of one point."""
    with Run.begin() as run:
        p = select(read_points(run.open(access), run.ctx), selector)
    if as_json:
        print_json(point_document(p))
        return
    body = p.body
    print(f"point        {p.id}")
    print(f"time         {format_time(p.time)} (by the store's clock)")
    print(
        f"made by      {body.host}, {body.program}, run {body.run}, in {format_duration(body.finished - body.started)}"
    )
    print(f"tags         {_tags(p) or 'none'}" + ("; kept until deleted" if body.keep else ""))
    print(
        f"read         {format_size(body.read)}, of it new {format_size(body.new)}, stored {format_size(body.stored)}"
    )
    for m in body.members:
        print(f"{m.kind:<12} {m.name}, {format_size(m.size)}, from {m.location}")
        print(f"consistency  {m.achieved} ({m.asked} asked for)")
        for c in m.topology.contents if m.topology else ():
            print(f"  at {c.offset:<10} {c.type} {c.uuid} {c.label}".rstrip())


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
    """What changed from point OLD to point NEW, in whole blocks; no data is read."""
    with Run.begin() as run:
        opened = run.open(access)
        difference = diff_points(opened, read_points(opened, run.ctx), old, new)
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
