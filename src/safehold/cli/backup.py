"""`safehold backup`."""

from __future__ import annotations

import click

from safehold.app.backup import BackupOptions, BackupOutcome, back_up, this_host
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.compose.wiring import resolve_source
from safehold.model.consistency import Consistency
from safehold.model.errors import SafeholdError, UsageError
from safehold.model.resource import ResourceRef
from safehold.model.units import format_duration, format_rate, format_size

__all__ = ["backup"]


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--name", help="Name of the resource: the identity its history hangs on. For a single source.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Tag the points.")
@click.option(
    "--require",
    type=click.Choice([c.label for c in reversed(Consistency)]),
    default=Consistency.CRASH.label,
    show_default=True,
    help="Least consistency to accept; anything less is a failure.",
)
@click.option("--keep-until-deleted", "keep", is_flag=True, help="No rule expires these points.")
@click.option("--adopt", is_flag=True, help="Go on with a history that another host began.")
@click.option("--dry-run", is_flag=True, help="Say what would be backed up, and stop.")
@vault_options
@json_option
def backup(
    sources: tuple[str, ...],
    name: str | None,
    tags: tuple[str, ...],
    require: str,
    keep: bool,
    adopt: bool,
    dry_run: bool,
    access: Access,
    as_json: bool,
) -> int:
    """Back up each SOURCE: a raw or qcow2 image or a block device (volume:PATH forces that).

    With several sources, one that fails does not stop the others; the worst exit code wins.
    """
    if name and len(sources) > 1:
        raise UsageError("--name is for a single source", remedy="back the sources up one by one")
    options = BackupOptions(Consistency.parse(require), _tags(tags), keep, adopt)
    outcomes: list[BackupOutcome] = []
    failures: list[tuple[str, SafeholdError]] = []
    with Run.begin() as run:
        opened = None if dry_run else run.open(access)
        for spec in sources:
            try:
                source, ref = resolve_source(spec)
                if name:
                    ref = ResourceRef(ref.kind, name, ref.location)
                if opened is None:
                    with source.capture(ref, options.require, run.ctx) as capture:
                        print(
                            f"would back up {ref.name} ({format_size(capture.content.size)}, {capture.achieved.label}) from {ref.location}"
                        )
                    continue
                outcome = back_up(opened, source, ref, this_host(run.paths.state), options, run.ctx)
            except SafeholdError as error:
                if len(sources) == 1:
                    raise
                run.ctx.cancel.check()
                run.ctx.progress.warn(f"{spec}: {error}" + (f" → {error.remedy}" if error.remedy else ""))
                failures.append((spec, error))
            else:
                outcomes.append(outcome)
                if not as_json:
                    print(_line(outcome))
    if as_json:
        print_json(
            {
                "points": [_document(outcome) for outcome in outcomes],
                "failures": [{"source": s, "what": e.what, "on": e.on, "code": e.exit_code} for s, e in failures],
            }
        )
    elif failures:
        print(f"{len(outcomes)} of {len(sources)} sources backed up; failed: {', '.join(spec for spec, _ in failures)}")
    return max((error.exit_code for _, error in failures), default=0)


def _tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UsageError("not a tag", on=pair, remedy="write --tag KEY=VALUE")
        tags[key] = value
    return tags


def _line(outcome: BackupOutcome) -> str:
    text = (
        f"{outcome.resource}@{outcome.point[:8]}  {format_size(outcome.size)} disk, {format_size(outcome.read)} read, "
        f"{format_size(outcome.new)} new, {format_size(outcome.stored)} stored; {outcome.achieved.label}-consistent; "
        f"{format_duration(outcome.seconds)} ({format_rate(outcome.read, outcome.seconds)})"
    )
    if outcome.twice:
        text += f"; {format_size(outcome.twice)} stored twice, by another backup at the same time"
    return text


def _document(outcome: BackupOutcome) -> dict[str, object]:
    return {
        "resource": outcome.resource,
        "point": outcome.point,
        "size": outcome.size,
        "read": outcome.read,
        "new": outcome.new,
        "stored": outcome.stored,
        "stored_twice": outcome.twice,
        "consistency": outcome.achieved.label,
        "seconds": round(outcome.seconds, 3),
    }
