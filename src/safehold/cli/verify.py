"""`safehold verify`."""

from __future__ import annotations

from pathlib import Path

import click

from safehold.app.verify import Depth, parse_expected, verify_points
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.model.errors import DamageError, UsageError
from safehold.model.units import format_duration, format_rate, format_size
from safehold.recovery.verify import Findings, verify_stored

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
    "--expect",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Points that must be there: saved output of points --json.",
)
@vault_options
@json_option
def verify(
    selector: str | None,
    how: str,
    expect: Path | None,
    access: Access,
    as_json: bool,
) -> int:
    """Prove that the vault holds what its points need. Exit code 4 where it does not."""
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
    else:
        for finding in findings.found:
            print(f"DAMAGED  {finding.on}: {finding.what}" + (f" (point {finding.point[:8]})" if finding.point else ""))
        print(_summary(how, findings, seconds))
    if findings.found:
        raise DamageError(
            f"{len(findings.found)} problem{'s' * (len(findings.found) > 1)} found",
            on=store.url,
            remedy='see the runbook, "Damaged vault"; restores say what they cannot read',
        )
    return 0


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
