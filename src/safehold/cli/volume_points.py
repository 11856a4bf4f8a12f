"""`safehold volume snapshot` and `changed`: volumes and their points."""

from __future__ import annotations

import math

import click

from safehold.app.points import diff_points, member_of, parse_selector, pick
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.cli.tags import parse_tags
from safehold.cli.volume_service import volume_client
from safehold.compose.groups import volume_groups
from safehold.compose.volume_brackets import find_brackets
from safehold.compose.volume_snapshot import take_snapshot, wait_for_snapshot
from safehold.model.consistency import Consistency
from safehold.model.errors import UsageError
from safehold.model.units import format_duration, format_size

__all__ = ["changed", "snapshot"]


@click.command()
@click.argument("name", required=False)
@click.option(
    "--group",
    "names",
    multiple=True,
    metavar="NAME",
    help="Volumes sealed at the same instant, as one point: repeat it, or name a resource of the configuration that has volumes.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Tag the point.")
@click.option(
    "--require",
    type=click.Choice([c.label for c in reversed(Consistency)]),
    help="Least consistency to accept; anything less is a failure. Without it: what the brackets reach, else crash.",
)
@click.option(
    "--bracket",
    "brackets",
    multiple=True,
    metavar="KIND:WHAT",
    help="Made quiet for the moment: fsfreeze:DIR, readonly:DIR, unmount:DIR, guest-agent:SOCKET, hook:COMMAND. In order; let go of in reverse.",
)
@click.option("--wait", is_flag=True, help="Return once the point is in the vault.")
@vault_options
@json_option
def snapshot(
    name: str | None,
    names: tuple[str, ...],
    tags: tuple[str, ...],
    require: str | None,
    brackets: tuple[str, ...],
    wait: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Hold the content of a volume as it is at this instant, and bring it to the vault behind."""
    if not names and not name:
        raise UsageError("which volume?", remedy="give its name, or --group NAME for each of several")
    with Run.begin() as run, volume_client(run, access) as client:
        groups = volume_groups(run.paths.config / "safehold.yaml") if names else {}
        several = [one for group in names for one in groups.get(group, [group])]
        wanted = list(dict.fromkeys(several + ([name] if name else [])))
        made, pause = take_snapshot(
            client,
            wanted,
            Consistency.parse(require) if require else None,
            lambda served: find_brackets(brackets, served, run.paths, run.ctx),
            dict(parse_tags(tags)),
            run.ctx,
        )
        if not as_json:
            held = f"; held for {format_duration(pause)}" if brackets else ""
            print(
                f"{', '.join(wanted)}: snapshot {made['id'][:8]} taken, {_levels(made['levels'])}; "
                f"writes waited {made['pause'] * 1000:.1f} ms{held}"
            )
        if wait:
            made = wait_for_snapshot(client, made["id"], math.inf, run.ctx) | {"levels": made["levels"]}
            if not as_json:
                print(
                    f"completed: point {made['point'][:8]}, {format_size(made['read'])} read, {format_size(made['stored'])} stored"
                )
        elif not as_json:
            print(f"  → pending; it becomes a point behind: safehold volume show {wanted[0]}")
    if as_json:
        print_json(made)


def _levels(levels: dict[str, str]) -> str:
    if len(set(levels.values())) == 1:
        return next(iter(levels.values()))
    return ", ".join(f"{name} {level}" for name, level in levels.items())


@click.command()
@click.argument("old")
@click.argument("new")
@vault_options
@json_option
def changed(old: str, new: str, access: Access, as_json: bool) -> None:
    """List the byte ranges that differ between two points of a volume: data@A data@B."""
    with Run.begin() as run:
        opened = run.open(access)
        pair = pick(opened, old, new)
        for text, found in zip((old, new), pair, strict=True):
            kind = member_of(found, parse_selector(text).resource).kind
            if kind != "volume":
                raise UsageError(f"this is a {kind} and no disk", on=text, remedy=f"safehold diff {old} {new}")
        difference = diff_points(opened, pair, old, new)
    if as_json:
        print_json({"changed": difference.changed, "ranges": [list(one) for one in difference.ranges]})
        return
    for start, end in difference.ranges:
        print(f"{start} {end - start}")
