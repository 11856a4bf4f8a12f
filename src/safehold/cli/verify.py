"""`safehold verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from safehold.app.verify import Depth, parse_expected, verify_next, verify_points
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.model.errors import DamageError, UsageError
from safehold.model.shown import printable
from safehold.model.units import format_duration, format_rate, format_size, parse_size, parse_span
from safehold.recovery.verify import Finding, Findings, verify_stored

__all__ = ["verify"]


@click.command()
@click.argument("selector", required=False, metavar="[RESOURCE@WHEN]")
@click.option(
    "--structure",
    "how",
    flag_value="structure",
    default="structure",
    help="Everything that points need is there. [default]",
)
@click.option(
    "--data", "how", flag_value="data", help="Every byte of the points can be read and is what was backed up."
)
@click.option("--stored", "how", flag_value="stored", help="Every object is what its name says; needs no key.")
@click.option(
    "--older-than", metavar="SPAN", help="Go on from run to run: read what was not read for SPAN (30d), longest first."
)
@click.option("--read-budget", metavar="SIZE", help="Read about so much in this run (10GB); goes with --older-than.")
@click.option(
    "--expect",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Points that must be there: saved output of points --json.",
)
@vault_options
@json_option
def verify(
    selector: str | None,
    how: str,
    older_than: str | None,
    read_budget: str | None,
    expect: Path | None,
    access: Access,
    as_json: bool,
) -> int:
    """Prove that the vault holds what its points need. Exit code 4 where it does not.

    Points whose data was read and found right are noted as verified.
    """
    if older_than or read_budget:
        if selector or expect or how == "stored":
            raise UsageError(
                "--older-than chooses by itself what to read", remedy="leave the point, --stored and --expect out"
            )
        return _rolling(older_than or "30d", read_budget or "1PB", access, as_json=as_json)
    if how == "stored" and (selector or expect):
        raise UsageError("--stored looks at all objects and at nothing else", remedy="leave the point and --expect out")
    with Run.begin() as run:
        began = run.ctx.clock.monotonic()
        if how == "stored":
            store = run.stores(access).store
            run.ctx.progress.start("verify", None)
            findings = verify_stored(store, run.ctx)
            run.ctx.progress.done()
        else:
            expected = parse_expected(_read(expect), on=str(expect)) if expect else []
            opened = run.open(access)
            findings = verify_points(opened, selector, Depth(how), expected, run.ctx)
            store = opened.store
        seconds = run.ctx.clock.monotonic() - began
    if as_json:
        print_json(_document(how, findings, seconds))
        return DamageError.exit_code if findings.found else 0
    _show(findings.found)
    print(_summary(how, findings, seconds))
    _fail(findings.found, store.url)
    return 0


def _rolling(older_than: str, read_budget: str, access: Access, *, as_json: bool) -> int:
    try:
        span, budget = parse_span(older_than), parse_size(read_budget)
    except ValueError as error:
        raise UsageError(str(error), on="--older-than, --read-budget") from error
    with Run.begin() as run:
        opened = run.open(access)
        began = run.ctx.clock.monotonic()
        rolled = verify_next(opened, span, budget, run.ctx)
        seconds = run.ctx.clock.monotonic() - began
    found = rolled.findings.found
    if as_json:
        print_json(
            {
                "verified": "rolling",
                "ok": not found,
                "packs": rolled.packs,
                "read": rolled.read,
                "proved": [p.id for p in rolled.proved],
                "waiting": [p.id for p in rolled.waiting],
                "waiting_bytes": rolled.waiting_bytes,
                "findings": [{"what": f.what, "on": f.on, "point": f.point} for f in found],
                "seconds": round(seconds, 3),
            }
        )
        return DamageError.exit_code if found else 0
    _show(found)
    print(
        f"{'ok' if not found else 'DAMAGED'}: {format_size(rolled.read)} in {rolled.packs} packs read; {len(rolled.proved)} points proved, "
        f"{len(rolled.waiting)} wait for {format_size(rolled.waiting_bytes)} to be read; {format_duration(seconds)}"
    )
    _fail(found, opened.store.url)
    return 0


def _show(found: Sequence[Finding]) -> None:
    for finding in found:
        at = f" (point {finding.point[:8]})" if finding.point else ""
        print(f"DAMAGED  {printable(finding.on)}: {printable(finding.what)}{at}")


def _fail(found: Sequence[Finding], url: str) -> None:
    if found:
        raise DamageError(
            f"{len(found)} problem{'s' * (len(found) > 1)} found",
            on=url,
            remedy='see the runbook, "Damaged vault"; restores say what they cannot read',
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", on=str(path)) from error


def _summary(how: str, findings: Findings, seconds: float) -> str:
    if how == "stored":
        looked = f"{findings.checked} objects, {format_size(findings.stored)} ({format_rate(findings.stored, seconds)})"
    elif how == "data":
        looked = f"{format_size(findings.logical)} of data, {findings.checked} chunks read ({format_rate(findings.logical, seconds)})"
    else:
        looked = f"{format_size(findings.logical)} of data, {findings.checked} chunks located"
    return f"{'ok' if not findings.found else 'DAMAGED'}: {looked}; {format_duration(seconds)}"


def _document(how: str, findings: Findings, seconds: float) -> dict[str, object]:
    return {
        "verified": how,
        "ok": not findings.found,
        "checked": findings.checked,
        "logical_bytes": findings.logical,
        "stored_bytes": findings.stored,
        "findings": [{"what": f.what, "on": f.on, "point": f.point} for f in findings.found],
        "seconds": round(seconds, 3),
    }
