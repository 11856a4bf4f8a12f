"""`safehold restore`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from safehold.app.preview import preview
from safehold.app.restore import RestoreMode, RestoreOutcome, RestorePlan, plan_restore
from safehold.app.restore import restore as carry_out
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.cli.shortfalls import shortfall, shortfall_lines
from safehold.cli.volume import restore_to_volume
from safehold.compose.patterns import path_matcher
from safehold.compose.targets import check_target, keep_out, look_below, open_target, open_tree_target
from safehold.model.errors import PartialError, UsageError
from safehold.model.shown import printable
from safehold.model.units import format_count, format_duration, format_rate, format_size, format_time
from safehold.recovery.comparing import Change, Difference

__all__ = ["restore"]

_VOLUME = "volume:"


@click.command()
@click.argument("selector", metavar="RESOURCE@WHEN[:PATH]")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="DEST",
    help="A new file or directory, with --overwrite or --delta an existing file, device or directory, or volume:NAME.",
)
@click.option("--overwrite", is_flag=True, help="Write over an existing file or device.")
@click.option("--delta", is_flag=True, help="Compare with what is there, and write only what differs.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Of a tree, only what matches: img/**, *.conf.")
@click.option("--salvage", is_flag=True, help="Go on past what cannot be read, and list it.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be written, and stop; of files with --delta each one that differs, and how.",
)
@vault_options
@json_option
def restore(
    selector: str,
    target: str,
    overwrite: bool,
    delta: bool,
    include: tuple[str, ...],
    salvage: bool,
    dry_run: bool,
    access: Access,
    as_json: bool,
) -> int:
    """Write a point back: RESOURCE@latest, RESOURCE@TIME or RESOURCE@ID onto DEST.

    Disks and streams go onto a file or device; volume:NAME makes a volume that is
    usable at once and filled in behind. Files go below the directory DEST; with :PATH, what is in that directory of the point does. A
    single file goes to the name DEST, or into the directory DEST under its own name.
    """
    if overwrite and delta:
        raise UsageError("--overwrite and --delta exclude each other", remedy="give one of them")
    if target == "-":
        raise UsageError(
            "a restore goes to a place, not to standard output",
            on="--to -",
            remedy=f"safehold cat {selector}, or ./- for a file of that name",
        )
    if target.startswith(_VOLUME):
        if overwrite or delta or include or salvage:
            raise UsageError(
                "a volume is made anew, of all of a point", on=target, remedy="leave out the other options"
            )
        with Run.begin() as run:
            if dry_run:
                plan = plan_restore(run.open(access), selector, target, RestoreMode.NEW)
                print(f"would make volume {target.removeprefix(_VOLUME)} of {plan.resource} ({format_size(plan.size)})")
            else:
                restore_to_volume(run, access, selector, target.removeprefix(_VOLUME), as_json)
        return 0
    mode = RestoreMode.DELTA if delta else RestoreMode.OVERWRITE if overwrite else RestoreMode.NEW
    with Run.begin() as run:
        opened = run.open(access)
        keep_out(target, opened.store.url)
        plan = plan_restore(opened, selector, target, mode, path_matcher(include, "--include"))
        if dry_run and plan.kind == "tree":
            check_target(plan)
            _tell_changes(preview(opened, plan, look_below, run.ctx), plan, as_json)
            return 0
        if dry_run:
            check_target(plan)
            told = f"would write {plan.resource} of {format_time(plan.point.time)} ({format_size(plan.size)}) to {plan.target} ({mode.value})"
            print_json({"plan": told}) if as_json else print(told)
            return 0
        outcome = carry_out(opened, plan, open_target, open_tree_target, salvage=salvage, ctx=run.ctx)
    if as_json:
        # The document says what is lost; an error beside it would make two documents.
        print_json(_document(outcome))
        return PartialError.exit_code if outcome.reasons or outcome.problems else 0
    print(_line(outcome))
    for start, end in outcome.lost:
        print(f"lost: bytes {start}-{end - 1}")
    for told in (*(outcome.reasons if plan.kind != "volume" else ()), *shortfall_lines(outcome.problems)):
        run.ctx.progress.warn(told)
    if outcome.problems and not outcome.reasons:
        raise shortfall(outcome.problems, plan.target)
    if plan.kind != "volume" and outcome.reasons:
        raise PartialError(
            f"{format_count(len(outcome.reasons), 'file or part', 'files or parts')} of the tree could not be read whole",
            on=target,
            remedy="take them from another point",
        )
    if outcome.lost:
        raise PartialError(
            f"bytes {outcome.lost_text} could not be read: {'; '.join(outcome.reasons[:3])}",
            on=target,
            remedy="they are not what was backed up; take them from another point",
        )
    return 0


def _tell_changes(changes: Iterator[Change], plan: RestorePlan, as_json: bool) -> None:
    """One line for each thing that would be written, and what it comes to. Of a tree that is written whole only the sum is told."""
    counted = dict.fromkeys(Difference, 0)
    size = 0
    listed = []
    for change in changes:
        counted[change.difference] += 1
        size += change.size
        if plan.mode is not RestoreMode.DELTA:
            continue
        path = printable(change.path) or "."
        if as_json:
            listed.append({"path": path, "difference": change.difference.value, "size": change.size})
        else:
            print(f"{change.difference.value:10}  {path}")
    if as_json:
        print_json({"changes": listed, "size": size, **{d.value: count for d, count in counted.items()}})
        return
    what = f"{counted[Difference.MISSING]} new"
    if plan.mode is RestoreMode.DELTA:
        what += (
            f", {counted[Difference.CONTENT]} of other content, {counted[Difference.ATTRIBUTES]} with other attributes"
        )
    print(f"would write to {plan.target}: {what}; {format_size(size)} of {plan.resource}@{plan.point.id[:8]}")


def _line(outcome: RestoreOutcome) -> str:
    plan, rate = outcome.plan, format_rate(outcome.data, outcome.seconds)
    where = f"{plan.resource}@{plan.point.id[:8]} → {plan.target}: "
    if plan.kind == "volume":
        return where + (
            f"{format_size(outcome.data)} written, {format_size(outcome.zeroed)} zero, {format_size(outcome.kept)} right already; "
            f"{format_duration(outcome.seconds)} ({format_rate(plan.size, outcome.seconds)})"
        )
    if plan.kind == "tree":
        where += f"{format_count(outcome.entries, 'file')}, {outcome.kept:,} right already, "
    return where + f"{format_size(outcome.data)} written; {format_duration(outcome.seconds)} ({rate})"


def _document(outcome: RestoreOutcome) -> dict[str, object]:
    return {
        "resource": outcome.plan.resource,
        "point": outcome.plan.point.id,
        "target": outcome.plan.target,
        "mode": outcome.plan.mode.value,
        "size": outcome.plan.size,
        "written": outcome.data,
        "zeroed": outcome.zeroed,
        "kept": outcome.kept,
        "entries": outcome.entries,
        "problems": [str(problem) for problem in outcome.problems],
        "lost": [list(r) for r in outcome.lost],
        "reasons": outcome.reasons,
        "seconds": round(outcome.seconds, 3),
    }
