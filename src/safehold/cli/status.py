"""`safehold status`, also shown by a bare `safehold`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from safehold.app.findings import last_findings
from safehold.app.points import read_points
from safehold.app.status import Standing, damaged_packs, standings
from safehold.cli.quantities import span_of
from safehold.cli.running import Access, Run, json_option, print_json, print_table, vault_options
from safehold.compose.asked import asked_for, only_vault
from safehold.compose.quiet import frozen_problems
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_switch import switch_problems
from safehold.compose.wiring import named_vault
from safehold.model.errors import DamageError, FailedError, OverdueError
from safehold.model.units import format_duration, format_size, format_time
from safehold.vault.vault import Vault

__all__ = ["status"]


@click.command()
@click.argument("resource", required=False)
@click.option(
    "--max-age", metavar="SPAN", help="A resource without a point of the last SPAN (26h) is overdue: exit code 8."
)
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The configuration of unattended runs, whose resources are expected; default: safehold.yaml in /etc/safehold.",
)
@vault_options
@json_option
def status(resource: str | None, max_age: str | None, path: Path | None, access: Access, as_json: bool) -> int:
    """Each resource with its newest point; problems first.

    Resources that unattended runs are to back up are shown even where no backup of them succeeded. Ages are by the store's clock. Ends with 8
    where a resource is overdue, else with 4 where damage is known, and with 1 where there is another problem.
    """
    limit = span_of(max_age, "--max-age") if max_age else None
    with Run.begin() as run:
        configuration = path or run.paths.config / "safehold.yaml"
        named = named_vault(access.vault, os.environ, run.paths)
        opened = (None if named else only_vault(configuration, run.paths, run.ctx)) or run.open(access)
        asked = asked_for(configuration, run.paths, opened.store.url)
        points, rejected = read_points(opened)
        found = standings(opened, points, run.ctx, limit, asked.expected)
        damage = [one.problem for one in rejected if not one.void]
        damage += [*(str(problem) for problem in opened.problems), *_damage(damaged_packs(opened)), *_found(opened)]
        problems = [*damage, *asked.problems]
        problems += VolumeClient(run.paths, os.environ, run.ctx).problems()
        problems += [*switch_problems(run.paths.volume_switch), *frozen_problems(run.paths)]
    if resource is not None:
        found = [one for one in found if one.resource == resource]
        if not found:
            raise OverdueError("no points of this resource", on=resource, remedy="see what there is: safehold status")
    overdue = [one for one in found if one.overdue]
    empty = limit is not None and not found
    code = DamageError.exit_code if damage else FailedError.exit_code if problems else 0
    if as_json:
        resources = {one.resource: _document(one) for one in found}
        print_json(
            {"vault": opened.store.url, "elsewhere": asked.elsewhere, "problems": problems, "resources": resources}
        )
        return OverdueError.exit_code if overdue or empty else code
    for problem in problems:
        print(f"PROBLEM  {problem}")
    print(f"vault {opened.store.url}")
    if empty:
        raise OverdueError("there are no points at all", on=opened.store.url, remedy="back up: safehold backup")
    if not found:
        print("no points yet. Next: safehold backup DIRECTORY_OR_DISK")
    else:
        rows = [
            [
                one.state,
                one.resource,
                format_time(one.point.time) if one.point else "never",
                format_duration(one.age) if one.point else "",
                format_size(one.size) if one.point else "",
                str(one.points),
                format_time(one.verified) if one.verified else "never",
            ]
            for one in found
        ]
        print_table(["STATE", "RESOURCE", "NEWEST POINT", "AGE", "SIZE", "POINTS", "LAST VERIFIED"], rows)
    for place in asked.elsewhere:
        print(f"not looked at: vault {place}, which the configuration has too: safehold status --vault {place}")
    if overdue:
        raise OverdueError(
            f"{len(overdue)} of {len(found)} resources have no point of the last {max_age}",
            on=", ".join(one.resource for one in overdue),
            remedy="look at the last run's messages, and back up: safehold backup",
        )
    return code


def _damage(packs: list[str]) -> list[str]:
    if not packs:
        return []
    names = ", ".join(packs[:3]) + (f" and {len(packs) - 3} more" if len(packs) > 3 else "")
    return [f'damaged data was found, and is not repaired: {names}; see the runbook, "Damaged vault"']


def _found(opened: Vault) -> list[str]:
    last = last_findings(opened)
    if last is None:
        return []
    told, more = last.found[:1], last.more + len(last.found[1:])
    first = "".join(f"{one.what} ({one.on})" for one in told) + f" (and {more} more)" * bool(more)
    return [f'verify found on {format_time(last.time)}: {first}; see the runbook, "Damaged vault"']


def _document(one: Standing) -> dict[str, object]:
    return {
        "state": one.state,
        "point": one.point.id if one.point else None,
        "time": one.point.time if one.point else None,
        "age": one.age if one.point else None,
        "consistency": one.consistency,
        "size": one.size,
        "points": one.points,
        "verified": one.verified,
        "partial": list(one.partial),
        "failure": one.failure,
    }
