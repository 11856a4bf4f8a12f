"""`safehold status`, also shown by a bare `safehold`."""

from __future__ import annotations

import click

from safehold.cli.points import read_points
from safehold.cli.running import Access, Run, json_option, print_json, print_table, vault_options
from safehold.model.units import format_duration, format_size, format_time

__all__ = ["status"]


@click.command()
@vault_options
@json_option
def status(access: Access, as_json: bool) -> None:
    """Each resource with its newest point; problems first."""
    with Run.begin() as run:
        opened = run.open(access)
        newest = {member.name: (p, member) for p in read_points(opened, run.ctx) for member in p.body.members}
        now = run.ctx.clock.now()
    problems = [str(problem) for problem in opened.problems]
    if as_json:
        resources = {
            name: {"point": p.id, "time": p.time, "consistency": m.achieved, "size": m.size}
            for name, (p, m) in newest.items()
        }
        print_json({"vault": opened.store.url, "problems": problems, "resources": resources})
        return
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print(f"vault {opened.store.url}")
    if not newest:
        print("no points yet. Next: safehold backup DISK")
        return
    rows = [
        [name, format_time(p.time), format_duration(max(0.0, now - p.time)), format_size(m.size), m.achieved]
        for name, (p, m) in sorted(newest.items())
    ]
    print_table(["RESOURCE", "NEWEST POINT", "AGE", "SIZE", "CONSISTENCY"], rows)
