"""`safehold vault …`: make a vault, look at it, and check a store."""

from __future__ import annotations

import os
from pathlib import Path

import click

from safehold.app.host import this_host
from safehold.app.making import make_vault
from safehold.app.prune import preview_prune, prune_vault
from safehold.cli.quantities import size_of, span_of
from safehold.cli.running import Access, Run, ask_new_passphrase, json_option, print_json, vault_options
from safehold.compose.credentials import find_passphrase
from safehold.compose.wiring import open_stores, places, record_default_vault
from safehold.model.errors import StoreError, UsageError
from safehold.model.shown import in_words, printable
from safehold.model.units import format_count, format_size, format_time
from safehold.objects.check import broken_order, check_store
from safehold.objects.location import vault_around
from safehold.vault.gc.report import PruneReport
from safehold.vault.gc.sessions import OpenSession
from safehold.vault.lost import LOST
from safehold.vault.records import Parameters
from safehold.vault.slots import Passphrase

__all__ = ["vault"]


@click.group()
def vault() -> None:
    """Make a vault, look at it, prune it, check a store."""


@vault.command()
@click.argument("place")
@click.option("--block-size", metavar="SIZE", help="Unit of deduplication of disks, 4K to 16M. [default: 512K]")
@click.option(
    "--kit-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the recovery kit here instead of printing it.",
)
@click.option("--another", is_flag=True, help="Also where this machine knows a vault at PLACE that is not there now.")
@json_option
def init(place: str, block_size: str | None, kit_file: Path | None, another: bool, as_json: bool) -> None:
    """Make a vault at PLACE: an empty or new directory, or s3://bucket/prefix."""
    parameters = Parameters(block_size=size_of(block_size, block_size)) if block_size else Parameters()
    with Run.begin() as run:
        if kit_file is not None and kit_file.exists():
            raise UsageError("the kit's file exists already", on=str(kit_file), remedy="give another name")
        if kit_file is not None and not os.access(kit_file.parent, os.W_OK | os.X_OK):
            raise UsageError("the kit's file cannot be written there", on=str(kit_file), remedy="give another path")
        around = vault_around(place)
        if around:
            raise UsageError("this lies in another vault", on=f"{place} (in {around})", remedy="give another place")
        stores = open_stores(place, run.ctx.clock)
        passphrase = find_passphrase(
            os.environ, "SAFEHOLD_PASSPHRASE", lambda: ask_new_passphrase("SAFEHOLD_PASSPHRASE")
        )
        made = make_vault(stores, Passphrase(passphrase), parameters, places(run.paths), run.ctx, another=another)
        if kit_file is not None:
            write_private(kit_file, made.kit)
        url = stores.store.url
        try:
            recorded = record_default_vault(run.paths, url)
        except OSError as error:
            recorded = False
            run.ctx.progress.warn(
                f"the default vault cannot be recorded ({in_words(error)}): give --vault or set SAFEHOLD_VAULT"
            )
    if as_json:
        print_json({"vault": url, "id": made.id, "default": recorded, "kit": str(kit_file) if kit_file else made.kit})
        return
    if kit_file is None:
        print(made.kit)
    else:
        print(f"The recovery kit is in {kit_file}: print it, and take the file off this machine.\n")
    print(f"Vault {made.id} is ready at {url}" + (", and the default from here on." if recorded else "."))
    print(f"Next: safehold backup DIRECTORY_OR_DISK{'' if recorded else f' --vault {url}'}")


def write_private(path: Path, text: str) -> None:
    """A new file for the user's eyes only. UsageError where it cannot be made."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UsageError(f"cannot be written ({error.strerror})", on=str(path), remedy="give another path") from error
    with os.fdopen(fd, "w") as file:
        file.write(text)


@vault.command()
@vault_options
@json_option
def info(access: Access, as_json: bool) -> None:
    """What the vault is and what is in it."""
    with Run.begin() as run:
        opened = run.open(access)
        points, rejected = opened.points() if opened.keyring else ([], [])
        sizes = [stamp.size for stamp in opened.store.list("")]
        parameters = opened.parameters
        told = {
            "vault": opened.store.url,
            "id": opened.document.id,
            "format": opened.document.format,
            "created": opened.document.created,
            "block_size": parameters.block_size,
            "pack_size": parameters.pack_size,
            "owner_generation": opened.owner.generation,
            "writers": len(opened.writers),
            "points": len(points),
            "resources": sorted({name for point in points for name in point.resources}),
            "protected_bytes": sum(member.size for point in points for member in point.body.members),
            "stored_bytes": sum(sizes),
            "objects": len(sizes),
            "problems": [
                *(str(problem) for problem in opened.problems),
                *(f"{r.name}: {r.reason}" for r in rejected),
                *(f"{name}: {LOST}" for name in opened.lost if name not in {r.name for r in rejected}),
            ],
        }
    if as_json:
        print_json(told)
        return
    shown = told | {
        key: format_size(int(str(told[key]))) for key in ("block_size", "pack_size", "protected_bytes", "stored_bytes")
    }
    shown["resources"] = ", ".join(sorted({name for point in points for name in point.resources})) or "none"
    shown["problems"] = "; ".join(map(str, told["problems"] if isinstance(told["problems"], list) else [])) or "none"
    for key, value in shown.items():
        print(f"{key.replace('_', ' '):<17} {value}")
    if points:
        print(f"{'newest point':<17} {format_time(points[-1].time)} {', '.join(points[-1].resources)}")


@vault.command()
@click.option("--dry-run", is_flag=True, help="Say what nothing needs any more, and stop.")
@click.option(
    "--stale",
    metavar="SPAN",
    default="36h",
    show_default=True,
    help="End sessions that gave no sign of life for so long.",
)
@click.option(
    "--exclusive",
    is_flag=True,
    help="No backup and no other prune of this vault is at work anywhere, and none begins: prune although the store cannot tell who came first.",
)
@vault_options
@json_option
def prune(dry_run: bool, stale: str, exclusive: bool, access: Access, as_json: bool) -> None:
    """Give back the space of expired points and of runs that were interrupted. Backups go on meanwhile, and none waits.

    What nothing needs is condemned first, and deleted once no running backup can rely on it: by this run where none is at work, else by a
    later one.
    """
    patience = span_of(stale, "--stale")
    with Run.begin() as run:
        opened, host = run.open(access), this_host(run.paths.state)
        if dry_run:
            report = preview_prune(opened, host, patience, run.ctx)
        else:
            report = prune_vault(opened, host, patience, None if exclusive else broken_order, run.ctx)
    if as_json:
        print_json(_prune_document(report))
        return
    print(f"points need      {format_size(report.live)} of {format_size(report.stored)} in packs")
    if report.deleted_packs:
        print(f"deleted          {format_size(report.deleted)} in {format_count(report.deleted_packs, 'pack')}")
    if report.condemned_packs:
        print(
            f"{'would condemn' if dry_run else 'condemned':<16} {format_size(report.condemned)} in {format_count(report.condemned_packs, 'pack')}"
        )
    if report.moved:
        print(
            f"{'would move' if dry_run else 'moved':<16} {format_size(report.moved)} out of packs that are mostly garbage"
        )
    for reason in report.spared.values():
        print(printable(f"left whole       a writer's packs: {reason} → {reason.remedy}"))
    for session in report.fenced:
        print(f"{'would end' if dry_run else 'ended for good':<16} {_session(session)}")
    for session in report.waiting:
        print(f"waiting for      {_session(session)}")
    if report.waiting:
        print("What is condemned is deleted by the next prune after these backups have ended.")
    elif dry_run:
        print("Its space would be free at once." if report.condemned_packs else "nothing to delete")
    elif not report.deleted_packs:
        print("nothing to delete")


def _session(session: OpenSession) -> str:
    who = (
        f"{session.info.host} pid {session.info.pid}, run {session.info.run}"
        if session.info
        else f"writer {session.wid.hex()[:8]}"
    )
    return f"{who}, last heard of {format_time(session.heard)}"


def _prune_document(report: PruneReport) -> dict[str, object]:
    def told(sessions: list[OpenSession]) -> list[dict[str, object]]:
        return [
            {
                "session": s.sid.hex(),
                "heard": s.heard,
                "run": s.info.run if s.info else "",
                "pid": s.info.pid if s.info else 0,
            }
            for s in sessions
        ]

    return {
        "live": report.live,
        "stored": report.stored,
        "condemned": report.condemned,
        "condemned_packs": report.condemned_packs,
        "deleted": report.deleted,
        "deleted_packs": report.deleted_packs,
        "moved": report.moved,
        "absorbed_runs": report.absorbed,
        "waiting": told(report.waiting),
        "fenced": told(report.fenced),
        "left_whole": [str(reason) for reason in report.spared.values()],
    }


@vault.command("check-store")
@click.argument("place")
@json_option
def check_store_verb(place: str, as_json: bool) -> int:
    """Try whether the store at PLACE keeps the promises that a vault rests on."""
    with Run.begin() as run:
        probes = check_store(open_stores(place, run.ctx.clock).direct, run.ctx.clock)
    broken = [probe.name for probe in probes if not probe.ok]
    if as_json:
        print_json({"store": place, "probes": [{"name": p.name, "ok": p.ok, "detail": p.detail} for p in probes]})
        return StoreError.exit_code if broken else 0
    else:
        for probe in probes:
            print(f"{'ok  ' if probe.ok else 'FAIL'}  {probe.name:<16} {probe.detail}")
    if broken:
        raise StoreError(
            f"the store breaks {len(broken)} of its promises ({', '.join(broken)})",
            on=place,
            remedy="do not keep a vault there",
        )
    return 0
