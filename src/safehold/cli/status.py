"""`safehold status`, also shown by a bare `safehold`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from safehold.app.points import read_points
from safehold.app.problems import Problem, of_resources, vault_problems
from safehold.app.status import Standing, standings
from safehold.cli.failures import as_document, print_failure
from safehold.cli.quantities import span_of
from safehold.cli.running import Access, Run, json_option, print_json, print_table, vault_options
from safehold.compose.asked import Asked, asked_for, only_vault
from safehold.compose.quiet import frozen_problems
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_switch import switch_problems
from safehold.compose.wiring import named_vault
from safehold.model.errors import OverdueError, SafeholdError, UsageError
from safehold.model.resource import what_there_is
from safehold.model.unforeseen import explain
from safehold.model.units import format_age, format_size, format_time

__all__ = ["status"]

_LATE = 3600.0
"""Seconds that a step may be due without anybody doing it: the timer looks every five minutes, and a run may take long."""

_OF_VOLUME = re.compile(r"\bvolume ([^\s:]+)")


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
    """Each resource with its newest point; problems first, each with what to do about it.

    Resources that unattended runs are to back up are shown even where no backup of them succeeded. Of one RESOURCE it tells what concerns that.
    What this machine knows by itself, of its volumes and of what may be held, is told also where the vault cannot be opened.
    Ages are by the store's clock. Ends with 8 where a resource is overdue, else with 4 where damage is known, with 3 where the newest point of
    a resource is partial, and with 1 where there is another problem.
    """
    limit = span_of(max_age, "--max-age") if max_age else None
    with Run.begin() as run:
        configuration = path or run.paths.config / "safehold.yaml"
        local = [one for one in _local_problems(run) if resource is None or one.concerns(resource)]
        if not as_json:
            # Before the vault is asked for anything: one that is away may be tried for minutes.
            _print_problems(local)
        try:
            look = _look(run, access, configuration, limit, resource)
        except (SafeholdError, OSError) as error:
            failure = explain(error)
            named = named_vault(access.vault, os.environ, run.paths)
            asked = asked_for(configuration, run.paths, named, run.ctx.clock.now()) if named else Asked()
            known = [one for one in asked.problems if resource is None or one.concerns(resource)]
            if not as_json:
                _print_problems(known)
                raise failure from error
            # No problem that is known without the vault has a higher exit code.
            print_json(_document(named, [], [*local, *known], asked) | {"error": as_document(failure)})
            print_failure(failure)
            return failure.exit_code
    found, asked, problems = look.found, look.asked, [*local, *look.problems]
    overdue = [one for one in found if one.overdue]
    empty = limit is not None and not found
    code = max((one.code for one in problems), default=0)
    if as_json:
        print_json(_document(look.url, found, problems, asked))
        return OverdueError.exit_code if overdue or empty else code
    _print_problems(look.problems)
    print(f"vault {look.url}")
    if empty:
        raise OverdueError("there are no points at all", on=look.url, remedy="back up: safehold backup")
    if not found:
        print("no points yet. Next: safehold backup DIRECTORY_OR_DISK")
    else:
        print_table(
            ["STATE", "RESOURCE", "NEWEST POINT", "AGE", "SIZE", "POINTS", "VERIFIED"], [_row(one) for one in found]
        )
    for line in _runs(asked, look.now):
        print(line)
    for place in asked.elsewhere:
        print(f"not looked at: vault {place}, which the configuration has too: safehold status --vault {place}")
    if overdue:
        raise OverdueError(
            f"{len(overdue)} of {len(found)} resources have no point of the last {max_age}",
            on=", ".join(one.resource for one in overdue),
            remedy="look at the last run's messages, and back up: safehold backup",
        )
    return code


@dataclass(frozen=True)
class _Look:
    """What a vault says: its address, the resources and problems that were asked for, and what unattended runs have to do with it, at `now`."""

    url: str
    found: list[Standing]
    problems: list[Problem]
    asked: Asked
    now: float


def _look(run: Run, access: Access, configuration: Path, limit: float | None, resource: str | None) -> _Look:
    named = named_vault(access.vault, os.environ, run.paths)
    opened = (None if named else only_vault(configuration, run.paths, run.ctx)) or run.open(access)
    now = run.ctx.clock.now()
    asked = asked_for(configuration, run.paths, opened.store.url, now)
    points, rejected = read_points(opened)
    found = standings(opened, points, rejected, run.ctx, limit, asked.expected)
    problems = vault_problems(opened, points, rejected, found, resource)
    problems += [one for one in asked.problems if resource is None or one.concerns(resource)]
    if resource is None:
        return _Look(opened.store.url, found, problems, asked, now)
    mine = [one for one in found if one.resource == resource]
    if not mine:
        remedy = what_there_is(resource, (one.resource for one in found), "safehold status")
        missing = UsageError if limit is None else OverdueError
        raise missing("no points of this resource", on=resource, remedy=remedy)
    return _Look(opened.store.url, mine, problems, asked, now)


def _local_problems(run: Run) -> list[Problem]:
    """What this machine knows without its vault: disks that hang, and what may be away or held, are more urgent than that."""
    told = [*switch_problems(run.paths.volume_switch), *VolumeClient(run.paths, os.environ, run.ctx).problems()]
    held = [Problem(text, 'see the runbook, "Frozen file system"') for text in frozen_problems(run.paths)]
    return [*(_of_volume(text) for text in told), *held]


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        print(f"PROBLEM  {problem}", flush=True)


def _row(one: Standing) -> list[str]:
    if one.point is None:
        return [one.state, one.resource, "never", "", "", str(one.points), "never"]
    newest = format_time(one.point.time), format_age(one.age), format_size(one.size)
    return [one.state, one.resource, *newest, str(one.points), _verified(one)]


def _verified(one: Standing) -> str:
    if one.proof is None:
        return "never"
    return f"{'newest' if one.proof.newest else one.proof.point[:8]}, {format_age(one.proof.age)} ago"


def _of_volume(text: str) -> Problem:
    """What the volume service tells of in one line: its problem and, behind an arrow, the remedy."""
    what, _, remedy = text.partition(" → ")
    name = _OF_VOLUME.search(what)
    return Problem(what, remedy, of_resources(name[1]) if name else ("*",))


def _runs(asked: Asked, now: float) -> Iterator[str]:
    """How unattended runs stand, where they are configured."""
    if asked.due is None:
        return
    step, when = asked.due
    last = f"the last one began on {format_time(asked.last)}" if asked.last is not None else "there was none yet"
    due = f"next is {step} on {format_time(when)}" if when > now else f"{step} is due"
    timer = (
        ""
        if asked.last is not None and when > now - _LATE
        else " → is the timer on? systemctl list-timers safehold.timer"
    )
    yield f"unattended runs: {last}; {due}{timer}"


def _document(
    url: str | None, found: Sequence[Standing], problems: Sequence[Problem], asked: Asked
) -> dict[str, object]:
    return {
        "vault": url,
        "elsewhere": asked.elsewhere,
        "problems": [
            {
                "what": one.what,
                "remedy": one.remedy,
                "resources": list(one.resources),
                "vault": one.vault,
                "code": one.code,
            }
            for one in problems
        ],
        "unattended": {"last": asked.last, "due": {"step": asked.due[0], "time": asked.due[1]}} if asked.due else None,
        "resources": {one.resource: _standing(one) for one in found},
    }


def _standing(one: Standing) -> dict[str, object]:
    return {
        "state": one.state,
        "point": one.point.id if one.point else None,
        "time": one.point.time if one.point else None,
        "age": one.age if one.point else None,
        "consistency": one.consistency,
        "size": one.size,
        "points": one.points,
        "verified": one.proof.time if one.proof else 0.0,
        "verified_point": one.proof.point if one.proof else None,
        "newest_verified": one.proof is not None and one.proof.newest,
        "damaged": list(one.damaged),
        "partial": list(one.partial),
        "failure": one.failure,
    }
