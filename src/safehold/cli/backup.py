"""`safehold backup`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import click

from safehold.app.backup import BackupOptions, BackupOutcome, back_up
from safehold.app.downtime import announcement
from safehold.app.host import this_host
from safehold.cli.quantities import span_of
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.cli.tags import parse_tags
from safehold.compose.quiet import find_downtime
from safehold.compose.sources import Sources, TreeOptions
from safehold.model.consistency import Consistency
from safehold.model.errors import PartialError, SafeholdError, UsageError
from safehold.model.resource import ResourceRef, can_be_chosen
from safehold.model.shown import printable
from safehold.model.units import format_count, format_duration, format_rate, format_size
from safehold.ports.source import Source

__all__ = ["backup"]

_IMAGES = (
    ".img",
    ".image",
    ".raw",
    ".bin",
    ".dd",
    ".disk",
    ".iso",
    ".qcow",
    ".qcow2",
    ".vhd",
    ".vhdx",
    ".vmdk",
    ".vdi",
)
"""Names of disk images end so: nobody who backs one up has to be told that it is taken as a disk."""

_AS_A_FILE = "{0} is taken as a disk image, without owner and permissions; as a file: tree:{0}"


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--name",
    help="Name of the resource: the identity its history hangs on. Several files and directories become one tree.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Tag the points.")
@click.option(
    "--require",
    type=click.Choice([c.label for c in reversed(Consistency)]),
    help="Least consistency to accept; anything less is a failure. Without it: crash for disks, none for files and pipes.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files that match: *.tmp, /srv/www/cache, **/node_modules.",
)
@click.option("--exclude-caches", is_flag=True, help="Leave out what is in directories with a CACHEDIR.TAG.")
@click.option("--one-file-system", is_flag=True, help="Stay on the file system of each SOURCE.")
@click.option("--keep-until-deleted", "keep", is_flag=True, help="No rule expires these points.")
@click.option(
    "--adopt",
    is_flag=True,
    help="Go on with a history that another host began, or with a tree in which a mount is gone for good.",
)
@click.option(
    "--bracket",
    "brackets",
    multiple=True,
    metavar="KIND:WHAT",
    help="Make it quiet while it is captured: unmount:DIR, readonly:DIR, fsfreeze:DIR, guest-agent:SOCKET, hook:COMMAND. See docs/consistency.md.",
)
@click.option(
    "--downtime",
    metavar="SPAN",
    help="For how long the brackets may be held (30m, 2h); then the watchdog lets go, and there is no point.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be backed up, and stop.")
@vault_options
@json_option
def backup(
    sources: tuple[str, ...],
    name: str | None,
    tags: tuple[str, ...],
    require: str | None,
    exclude: tuple[str, ...],
    exclude_caches: bool,
    one_file_system: bool,
    keep: bool,
    adopt: bool,
    brackets: tuple[str, ...],
    downtime: str | None,
    dry_run: bool,
    access: Access,
    as_json: bool,
) -> int:
    """Back up each SOURCE: a directory, a disk or an image of one, or what a program writes.

    A directory is a tree of files, as is tree:PATH, which takes a single file too. A block device or a plain path of a file is a disk, raw or
    qcow2 (volume:PATH forces that). - is standard input, and command:PROGRAM what a program writes, of which nothing is kept unless it ends
    well; both need a --name.

    With several sources, one that fails does not stop the others; the worst exit code wins. Files that cannot be read are named, and the
    point is partial (exit code 3).
    """
    plain = BackupOptions(Consistency.parse(require) if require else None, parse_tags(tags), keep, adopt)
    limit = _limit(downtime, brackets)
    tree_options = TreeOptions(exclude, exclude_caches, one_file_system, adopt)
    outcomes: list[BackupOutcome] = []
    failures: list[tuple[str, SafeholdError]] = []
    with Run.begin() as run:
        found = Sources(tree_options, run.paths, run.address(access))
        wanted = [" ".join(sources)] if name else list(sources)
        if brackets and len(wanted) > 1:
            raise UsageError(
                "brackets are for one resource", on=", ".join(wanted), remedy="back them up one after another"
            )
        opened = None if dry_run else run.open(access)
        for spec in wanted:
            try:
                source, ref = _resolve(found, sources if name else [spec], name)
                options = plain
                if brackets and ref.kind == "stream":
                    raise UsageError("brackets are for disks and files", on=spec, remedy="leave out --bracket")
                if brackets:
                    where = run.address(access)
                    quiet, source = find_downtime(brackets, limit, source, ref, run.paths, where, run.ctx)
                    options = replace(plain, downtime=quiet)
                if opened is None and options.downtime:
                    print(f"would back up {announcement(ref, options.downtime, None)}")
                    continue
                if opened is None:
                    with source.capture(ref, options.least(ref), run.ctx) as capture:
                        print(
                            f"would back up {ref.name} ({ref.kind}, {capture.achieved.label}) from {' '.join((ref.location, *ref.more))}"
                        )
                        if _perhaps_a_file(spec, ref) and not (capture.topology and capture.topology.contents):
                            run.ctx.progress.note(_AS_A_FILE.format(ref.location))
                    continue
                outcome = back_up(opened, source, ref, this_host(run.paths.state), options, run.ctx)
            except SafeholdError as error:
                if len(wanted) == 1:
                    raise
                run.ctx.cancel.check()
                run.ctx.progress.warn(f"{spec}: {error}" + (f" → {error.remedy}" if error.remedy else ""))
                failures.append((spec, error))
            else:
                outcomes.append(outcome)
                if outcome.first and not outcome.recognised and _perhaps_a_file(spec, ref):
                    run.ctx.progress.note(_AS_A_FILE.format(ref.location))
                for problem in outcome.partial:
                    run.ctx.progress.warn(f"{outcome.resource}: {problem}")
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
        print(
            f"{len(outcomes)} of {format_count(len(wanted), 'source')} backed up; failed: {', '.join(spec for spec, _ in failures)}"
        )
    codes = [error.exit_code for _, error in failures]
    return max(codes + [PartialError.exit_code for outcome in outcomes if outcome.partial], default=0)


def _limit(downtime: str | None, brackets: tuple[str, ...]) -> float | None:
    """Seconds that brackets may be held; None where nothing is said of it."""
    if downtime is None:
        return None
    if not brackets:
        raise UsageError(
            "a downtime of what?", on=f"--downtime {downtime}", remedy="say what is made quiet with --bracket"
        )
    seconds = span_of(downtime, "--downtime")
    if not seconds:
        raise UsageError("no time at all", on="--downtime")
    return seconds


def _resolve(found: Sources, specs: Sequence[str], name: str | None) -> tuple[Source, ResourceRef]:
    source, ref = found.resolve(specs[0]) if len(specs) == 1 else found.join(specs, name or "")
    if name:
        if not can_be_chosen(name):
            raise UsageError(
                "a name is of printable characters other than @", on=printable(name), remedy="give another with --name"
            )
        ref = replace(ref, name=name, chosen=True)
    if ref.name == "-":
        raise UsageError("this has no name of its own", on=specs[0], remedy="give it one with --name")
    return source, ref


def _perhaps_a_file(spec: str, ref: ResourceRef) -> bool:
    """Whether a file was taken as a disk that may not have been meant as one."""
    said = spec.startswith("volume:") or ref.location.lower().endswith(_IMAGES)
    return ref.kind == "volume" and not said and os.path.isfile(ref.location)


def _line(outcome: BackupOutcome) -> str:
    what = (
        f"{format_count(outcome.entries, 'file')}, {format_size(outcome.size)}"
        if outcome.entries
        else format_size(outcome.size)
    )
    text = (
        f"{outcome.resource}@{outcome.point[:8]}  {what}, {format_size(outcome.read)} read, "
        f"{format_size(outcome.new)} new, {format_size(outcome.stored)} stored; consistency: {outcome.achieved.label}; "
        f"{format_duration(outcome.seconds)} ({format_rate(outcome.read, outcome.seconds)})"
    )
    if outcome.pause:
        text += f"; others waited for {format_duration(outcome.pause)}"
    if outcome.twice:
        text += f"; {format_size(outcome.twice)} stored twice, by another backup at the same time"
    if outcome.partial:
        text += f"; PARTIAL: {format_count(len(outcome.partial), 'problem')}"
    return text


def _document(outcome: BackupOutcome) -> dict[str, object]:
    return {
        "resource": outcome.resource,
        "point": outcome.point,
        "size": outcome.size,
        "entries": outcome.entries,
        "partial": list(outcome.partial),
        "read": outcome.read,
        "new": outcome.new,
        "stored": outcome.stored,
        "stored_twice": outcome.twice,
        "consistency": outcome.achieved.label,
        "pause": round(outcome.pause, 3),
        "seconds": round(outcome.seconds, 3),
    }
