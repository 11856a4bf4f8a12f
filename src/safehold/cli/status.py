"""`safehold status`, also shown by a bare `safehold`."""

from __future__ import annotations

import os

import click

from safehold.app.status import Standing, standings
from safehold.cli.running import Access, Run, json_option, print_json, print_table, vault_options
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_switch import switch_problems
from safehold.model.errors import OverdueError, UsageError
from safehold.model.units import format_duration, format_size, format_time, parse_span

__all__ = ["status"]


@click.command()
@click.argument("resource", required=False)
@click.option(
    "--max-age", metavar="SPAN", help="A resource without a point of the last SPAN (26h) is overdue: exit code 8."
)
@vault_options
@json_option
def status(resource: str | None, max_age: str | None, access: Access, as_json: bool) -> int:
    """Each resource with its newest point; problems first."""
    try:
        limit = parse_span(max_age) if max_age else None
    except ValueError as error:
        raise UsageError(str(error), on="--max-age") from error
    with Run.begin() as run:
        opened = run.open(access)
        found = standings(opened, run.ctx, limit)
        problems = [str(problem) for problem in opened.problems]
        problems += VolumeClient(run.paths, os.environ, run.ctx).problems()
        problems += switch_problems(run.paths.volume_switch)
    if resource is not None:
        found = [one for one in found if one.resource == resource]
        if not found:
            raise OverdueError("no points of this resource", on=resource, remedy="see what there is: safehold status")
    overdue = [one for one in found if one.overdue]
    if as_json:
        resources = {one.resource: _document(one) for one in found}
        print_json({"vault": opened.store.url, "problems": problems, "resources": resources})
        return OverdueError.exit_code if overdue else 0
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print(f"vault {opened.store.url}")
    if not found:
        print("no points yet. Next: safehold backup DIRECTORY_OR_DISK")
    else:
        rows = [
            [
                one.state,
                one.resource,
                format_time(one.point.time),
                format_duration(one.age),
                format_size(one.size),
                str(one.points),
                format_time(one.verified) if one.verified else "never",
            ]
            for one in found
        ]
        print_table(["STATE", "RESOURCE", "NEWEST POINT", "AGE", "SIZE", "POINTS", "LAST VERIFIED"], rows)
    if overdue:
        raise OverdueError(
            f"{len(overdue)} of {len(found)} resources have no point of the last {max_age}",
            on=", ".join(one.resource for one in overdue),
            remedy="look at the last run's messages, and back up: safehold backup",
        )
    return 0


def _document(one: Standing) -> dict[str, object]:
    return {
        "state": one.state,
        "point": one.point.id,
        "time": one.point.time,
        "age": one.age,
        "consistency": one.consistency,
        "size": one.size,
        "points": one.points,
        "verified": one.verified,
        "partial": list(one.partial),
    }
