"""`safehold points`, and what is done with single ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from safehold.app.expire import apply_expiry, check_left, note_verified, plan_expiry, plan_single
from safehold.app.expire import hold as keep
from safehold.app.expire import release as end_hold
from safehold.app.expire import tag as set_tags
from safehold.app.findings import Remembered, last_findings
from safehold.app.keys import writer_labels
from safehold.app.points import made_by as of_writer
from safehold.app.points import of_pattern, pick, read_points
from safehold.app.sharing import warn_of_shared_names
from safehold.cli.point_pins import unpin
from safehold.cli.quantities import span_of
from safehold.cli.running import Access, Run, confirm, json_option, print_json, print_table, vault_options
from safehold.cli.tags import parse_tags
from safehold.model.errors import DamageError, UsageError
from safehold.model.shown import printable
from safehold.model.units import format_duration, format_size, format_time
from safehold.policies.retention import KeepRules
from safehold.vault.catalogue import Point, Rejected
from safehold.vault.notes import Facts
from safehold.vault.records import Member
from safehold.vault.vault import Vault

__all__ = ["Known", "point", "point_document", "points"]


_MOST_DAMAGE = 20
"""Findings that are shown of one point; all of them are in its JSON."""

_F = TypeVar("_F", bound=Callable[..., Any])
_count = click.IntRange(min=0)


@click.command()
@click.argument("resource", required=False)
@click.option("--made-by", metavar="WRITER", help="Those of the writer whose id begins so; see key list.")
@vault_options
@json_option
def points(
    resource: str | None,
    made_by: str | None,
    access: Access,
    as_json: bool,
) -> None:
    """List the points, oldest first: all of them, or those of each RESOURCE that a shell pattern fits."""
    with Run.begin() as run:
        opened = run.open(access)
        found, rejected = read_points(opened)
        if resource is not None:
            found = of_pattern(found, rejected, resource)
        if made_by is not None:
            found = of_writer(opened, found, made_by)
        known = Known.of(opened)
        warn_of_shared_names(found, run.ctx)
    if as_json:
        print_json({"points": [point_document(p, known) for p in found]})
        return
    if not found:
        print("no points" + (f" of {resource}" if resource else "") + (f" by writer {made_by}" if made_by else ""))
        return
    rows = [
        [
            p.id[:8],
            format_time(p.time),
            m.name,
            format_size(m.size),
            format_size(p.body.stored),
            m.achieved,
            _state(p, known),
            _tags(p, known),
        ]
        for p in found
        for m in p.body.members
    ]
    print_table(["ID", "TIME", "RESOURCE", "SIZE", "ADDED", "CONSISTENCY", "STATE", "TAGS"], rows)


@dataclass(frozen=True)
class Known:
    """What is known of points beyond what stands in them: the owner's notes, by their subjects; what the last verification on this machine found;
    and writers' labels.
    """

    facts: Mapping[bytes, Facts]
    past: Remembered
    labels: Mapping[bytes, str]

    @classmethod
    def of(cls, vault: Vault) -> Known:
        """All of one vault."""
        return cls(vault.notes().facts(), last_findings(vault) or Remembered(0.0), writer_labels(vault))

    def noted(self, p: Point) -> Facts:
        """What the owner noted about a point."""
        return self.facts.get(p.subject, Facts())


def _tags(p: Point, known: Known) -> str:
    return ",".join(f"{key}={value}" for key, value in known.noted(p).tagged(p.body.tags).items())


def _state(p: Point, known: Known) -> str:
    facts, hurt = known.noted(p), known.past.names(p)
    partial = any(member.partial for member in p.body.members)
    states = [word for word, is_so in (("damaged", hurt), ("partial", partial)) if is_so] or ["ok"]
    if facts.held:
        states.append("held")
    if facts.data and not hurt:
        states.append("verified")
    return ",".join(states)


def point_document(p: Point, known: Known) -> dict[str, object]:
    """A point as JSON, with what is known about it."""
    body, facts = p.body, known.noted(p)
    return {
        "id": p.id,
        "name": p.name,
        "digest": p.digest.hex(),
        "time": p.time,
        "writer": {"id": p.wid.hex(), "label": known.labels.get(p.wid, "")},
        "host": body.host,
        "program": body.program,
        "run": body.run,
        "started": body.started,
        "finished": body.finished,
        "tags": facts.tagged(body.tags),
        "held": facts.held,
        "verified_structure": facts.structure,
        "verified_data": facts.data,
        "damaged": known.past.time if known.past.names(p) else 0.0,
        "damage": [{"what": one.what, "on": one.on} for one in known.past.about(p)],
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
        "more": list(member.more),
        "entries": member.entries,
        "partial": list(member.partial),
        "size": member.size,
        "block_size": member.block_size,
        "consistency_asked": member.asked,
        "consistency": member.achieved,
        "taken": list(member.taken),
        "pause": member.pause,
        "brackets": [
            {
                "bracket": b.bracket,
                "consistency": b.achieved,
                "expected": b.expected,
                "entering": list(b.entering),
                "leaving": list(b.leaving),
            }
            for b in member.brackets
        ],
        "follows": member.lineage,
        "format": topology.format if topology else "",
        "contents": [
            {"type": c.type, "offset": c.offset, "uuid": c.uuid, "label": c.label}
            for c in (topology.contents if topology else ())
        ],
    }


@click.group()
def point() -> None:
    """List points, look at one, hold, tag and expire them."""


point.add_command(points, "list")
point.add_command(unpin)


@point.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@vault_options
@json_option
def show(selector: str, access: Access, as_json: bool) -> None:
    """Everything that is known of one point."""
    with Run.begin() as run:
        opened = run.open(access)
        (p,) = pick(opened, selector)
        known = Known.of(opened)
    if as_json:
        print_json(point_document(p, known))
        return
    body, held = p.body, known.noted(p).held
    print(f"point        {p.id}")
    print(f"time         {format_time(p.time)} (by the store's clock)")
    print(
        f"made by      {printable(body.host)}, {printable(body.program)}, run {body.run}, in {format_duration(body.finished - body.started)}"
    )
    print(f"writer       {printable(known.labels.get(p.wid, '')) or 'no label'} ({p.wid.hex()[:8]})")
    print(f"tags         {printable(_tags(p, known)) or 'none'}" + ("; kept until deleted" if body.keep else ""))
    print(f"state        {_state(p, known)}" + (f" ({printable(held)})" if held else ""))
    if known.past.names(p):
        print(f"damage       found by verify on {format_time(known.past.time)}; once it is mended: safehold verify")
    for finding in known.past.about(p)[:_MOST_DAMAGE]:
        print(f"  damaged    {printable(finding.on)}: {printable(finding.what)}")
    print(
        f"read         {format_size(body.read)}, of it new {format_size(body.new)}, stored {format_size(body.stored)}"
    )
    for m in body.members:
        places = ", ".join(printable(place) for place in (m.location, *m.more))
        print(f"{printable(m.kind):<12} {printable(m.name)}, {format_size(m.size)}, from {places}")
        print(f"consistency  {m.achieved} ({m.asked} asked for)")
        for b in m.brackets:
            print(f"  {printable(b.bracket)}: {b.achieved}; others waited for {format_duration(b.pause)}")
        for problem in m.partial:
            print(f"  missing    {printable(problem)}")
        for c in m.topology.contents if m.topology else ():
            print(printable(f"  at {c.offset:<10} {c.type} {c.uuid} {c.label}".rstrip()))


@point.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@click.option("--reason", default="held", show_default=True, help="Shown wherever the point is listed.")
@vault_options
def hold(selector: str, reason: str, access: Access) -> None:
    """Keep a point whatever the rules say, until it is released."""
    with Run.begin() as run:
        done = keep(run.open(access), selector, reason)
    print(f"point {done.id[:8]} is held: {reason}")


@point.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@vault_options
def release(selector: str, access: Access) -> None:
    """End a hold."""
    with Run.begin() as run:
        done = end_hold(run.open(access), selector)
    print(f"point {done.id[:8]} is no longer held")


@point.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@click.argument("tags", nargs=-1, metavar="K=V...")
@click.option("--remove", multiple=True, metavar="K", help="Take this tag away.")
@vault_options
def tag(selector: str, tags: tuple[str, ...], remove: tuple[str, ...], access: Access) -> None:
    """Set tags of a point, or take them away."""
    changes: dict[str, str | None] = {**parse_tags(tags), **dict.fromkeys(remove)}
    if not changes:
        raise UsageError("no tag given", remedy="write KEY=VALUE, or --remove KEY")
    with Run.begin() as run:
        done = set_tags(run.open(access), selector, changes)
    print(f"point {done.id[:8]} tagged")


def keep_options(function: _F) -> _F:
    """The keep rules, each as an option."""
    for option in (
        click.option("--keep-tag", "tags", multiple=True, metavar="K[=V]", help="All points with this tag."),
        click.option(
            "--hanoi",
            type=_count,
            default=0,
            help="So many points whose ages double: of 6, the oldest is 16 to 31 days old.",
        ),
        click.option("--window", metavar="SPAN", help="All points of the last SPAN (35d, 12h), and the one before."),
        click.option("--keep-yearly", "yearly", type=_count, default=0, help="The newest of so many years."),
        click.option("--keep-monthly", "monthly", type=_count, default=0, help="The newest of so many months."),
        click.option("--keep-weekly", "weekly", type=_count, default=0, help="The newest of so many weeks."),
        click.option("--keep-daily", "daily", type=_count, default=0, help="The newest of so many days."),
        click.option("--keep-hourly", "hourly", type=_count, default=0, help="The newest of so many hours."),
        click.option("--keep-last", "last", type=_count, default=0, help="The newest so many points."),
    ):
        function = option(function)
    return function


@point.command()
@click.argument("resources", nargs=-1, metavar="[RESOURCE|POINT]...")
@keep_options
@click.option("--even-last", is_flag=True, help="Single points: also a resource's last one, or its last verified one.")
@click.option(
    "--any-times", is_flag=True, help="Go by the store's times even where they contradict the order of the backups."
)
@click.option("--dry-run", is_flag=True, help="Say what would expire and why the rest is kept, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@vault_options
@json_option
def expire(
    resources: tuple[str, ...],
    window: str | None,
    even_last: bool,
    any_times: bool,
    dry_run: bool,
    yes: bool,
    access: Access,
    as_json: bool,
    **counts: Any,
) -> int:
    """Let points go: those of each RESOURCE (a shell pattern; all without one) that no keep rule keeps, or single ones by RESOURCE@ID. An
    object that is no valid point goes by @ID, the last part of its name.

    Whatever the rules say, the newest point, the newest complete one, the only verified one, and points that are held or in use stay; of
    single points the last one and the only verified one need --even-last. What expired points alone needed leaves the vault with the next
    `vault prune`.
    """
    rules = KeepRules(window=_span(window), **counts)
    single = [one for one in resources if "@" in one]
    if single and (len(single) < len(resources) or not rules.empty):
        raise UsageError("single points and rules exclude each other", on=" ".join(resources))
    if even_last and not single:
        raise UsageError("the rules let no last point go", on="--even-last", remedy="name single points: RESOURCE@ID")
    damaged = 0
    with Run.begin() as run:
        opened = run.open(access)
        if single:
            expiring: Sequence[Point | Rejected] = plan_single(opened, single)
            if not even_last:
                check_left(opened, [p for p in expiring if isinstance(p, Point)])
            told: list[tuple[Point | Rejected, tuple[str, ...]]] = [(p, ()) for p in expiring]
        else:
            # By the store's clock: this machine's may be years ahead.
            now = opened.listed_time() if dry_run else opened.store_time()
            plan = plan_expiry(opened, resources, rules, now, None, run.ctx, any_times=any_times)
            if resources and not plan.decisions:
                raise UsageError(
                    "no points of these resources", on=" ".join(resources), remedy="see what there is: safehold points"
                )
            if not dry_run:
                note_verified(opened, plan)
            expiring = plan.expiring
            told = [(p, d.reasons) for p, d in plan.decisions]
            for finding in plan.damaged.found:
                run.ctx.progress.warn(f"{finding.on} (point {finding.point[:8]}): {finding.what}")
            damaged = DamageError.exit_code if plan.damaged.found else 0
        if not as_json:
            rows = [
                [p.id[:8], format_time(p.time), ",".join(p.resources), ", ".join(reasons) if reasons else "EXPIRES"]
                for p, reasons in told
            ]
            print_table(["ID", "TIME", "RESOURCE", "KEPT BY"], rows)
        if expiring and not dry_run:
            if not yes:
                text = f"{len(expiring)} of {len(told)} points"
                confirm(f"Expire {text}?", "this lets points go", text)
            expiring = apply_expiry(opened, expiring, run.ctx)
    if as_json:
        points = [{"id": p.id, "resources": p.resources, "time": p.time, "kept_by": list(why)} for p, why in told]
        print_json({"dry_run": dry_run, "points": points, "expired": [] if dry_run else [p.id for p in expiring]})
    else:
        verb = "would expire" if dry_run else "expired"
        next_step = "" if dry_run or not expiring else "; safehold vault prune gives the space back"
        print(f"{len(expiring)} of {len(told)} points {verb}{next_step}")
    return damaged


def _span(text: str | None) -> float:
    return 0.0 if text is None else span_of(text, "--window")
