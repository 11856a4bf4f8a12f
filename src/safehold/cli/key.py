"""`safehold key …`."""

from __future__ import annotations

from pathlib import Path

import click

from safehold.app import keys
from safehold.cli.running import Access, Run, confirm, json_option, print_json, print_table, vault_options
from safehold.cli.vault import write_private
from safehold.compose.credentials import load_recipient
from safehold.model.errors import UsageError
from safehold.model.units import format_time
from safehold.vault.slots import Passphrase

__all__ = ["key"]

_path = click.Path(path_type=Path, dir_okay=False)


@click.group()
def key() -> None:
    """Key slots, rotation, recovery kits and writer credentials."""


@key.command("list")
@vault_options
@json_option
def list_verb(access: Access, as_json: bool) -> None:
    """The ways into the vault, and the writers."""
    with Run.begin() as run:
        opened = run.open(access)
        slots, writers = keys.list_keys(opened), keys.list_writers(opened)
    if as_json:
        print_json({"slots": [vars(slot) for slot in slots], "writers": [vars(w) for w in writers]})
        return
    print_table(["SLOT", "OPENS WITH", "CREATED", "LABEL"], [[s.id[:8], s.method, s.created, s.label] for s in slots])
    exported = [w for w in writers if w.exported]
    if exported:
        print()
        rows = [[w.id[:8], ", ".join(w.resources), _standing(w), w.label] for w in exported]
        print_table(["WRITER", "RESOURCES", "STATE", "LABEL"], rows)


def _standing(writer: keys.Writer) -> str:
    return f"revoked {format_time(writer.revoked_at)}" if writer.revoked else "may write"


@key.command()
@click.option("--recipient", type=_path, help="Make the slot for the holder of this X25519 public key in PEM.")
@click.option("--label", default="", help="A note for key list; it is stored in clear.")
@vault_options
@json_option
def add(
    recipient: Path | None,
    label: str,
    access: Access,
    as_json: bool,
) -> None:
    """One more way into the vault: a new passphrase (SAFEHOLD_NEW_PASSPHRASE…, or asked for), or a public key."""
    with Run.begin() as run:
        wrapper = load_recipient(recipient) if recipient else None
        opened, unlocked = run.open_owner(access)
        slot = keys.add_key(opened, unlocked, wrapper or Passphrase(run.new_passphrase()), label)
    print_json(vars(slot)) if as_json else print(f"key slot {slot.id[:8]} added")


@key.command()
@click.argument("slot")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say which slot would be removed, and stop.")
@vault_options
def remove(
    slot: str,
    yes: bool,
    dry_run: bool,
    access: Access,
) -> None:
    """Remove a key slot by its id. Whoever opened the vault with it before may have kept the owner's secret: then
    rotate.
    """
    with Run.begin() as run:
        opened, _ = run.open_owner(access)
        chosen = keys.find_slot(opened, slot)
        if dry_run:
            print(f"would remove key slot {chosen.id[:8]} ({chosen.method}, {chosen.label or 'no label'})")
            return
        if not yes:
            text = f"{chosen.id[:8]} ({chosen.method}, {chosen.label or 'no label'})"
            confirm(f"Remove key slot {text}?", "this removes a way into the vault", text)
        keys.remove_key(opened, chosen)
    print(f"key slot {chosen.id[:8]} removed")


@key.command()
@click.option("--kit-file", type=_path, help="Write the new recovery kit here instead of printing it.")
@click.option("--label", default="rotated", show_default=True, help="A note for key list; it is stored in clear.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@vault_options
def rotate(
    kit_file: Path | None,
    label: str,
    yes: bool,
    access: Access,
) -> None:
    """Make a new owner key and one slot for it (SAFEHOLD_NEW_PASSPHRASE…, or asked for); all other slots are removed.

    Backups from then on are sealed to the new key. What was stored before stays readable to whoever held the old one.
    """
    with Run.begin() as run:
        if kit_file is not None and kit_file.exists():
            raise UsageError("the kit's file exists already", on=str(kit_file), remedy="give another name")
        opened, unlocked = run.open_owner(access)
        passphrase = run.new_passphrase()
        if not yes:
            confirm(
                "Rotate the owner's key and remove every other key slot?",
                "this removes every other way into the vault",
                opened.store.url,
            )
        rotation = keys.rotate_key(opened, unlocked, Passphrase(passphrase), label)
        if kit_file is not None:
            write_private(kit_file, rotation.kit)
    print(
        rotation.kit
        if kit_file is None
        else f"The new recovery kit is in {kit_file}: print it, and destroy the old page.\n"
    )
    removed = ", ".join(slot.id[:8] for slot in rotation.removed)
    print(
        f"owner key generation {rotation.generation} is in force; slot {rotation.slot.id[:8]} made, removed: {removed}"
    )


@key.command()
@click.option("--paper", is_flag=True, default=True, help="The recovery kit, to be printed (the only form there is).")
@click.option("--kit-file", type=_path, help="Write it here instead of printing it.")
@vault_options
def export(
    paper: bool,
    kit_file: Path | None,
    access: Access,
) -> None:
    """Print the recovery kit again."""
    with Run.begin() as run:
        opened, unlocked = run.open_owner(access)
        text = keys.paper_kit(opened, unlocked)
        if kit_file is not None:
            write_private(kit_file, text)
    print(
        text
        if kit_file is None
        else f"The recovery kit is in {kit_file}: print it, and take the file off this machine."
    )


@key.command()
@vault_options
@json_option
def check(access: Access, as_json: bool) -> None:
    """Prove that this passphrase, key, kit or credential opens the vault as it is now, and say what it can do."""
    with Run.begin() as run:
        credentials = run.credentials(access)
        checked = keys.check_key(run.open(access, credentials), by_kit=credentials.kit is not None)
    if as_json:
        print_json(vars(checked))
        return
    print(f"opens vault {checked.vault} as {checked.role}: {checked.can}")


@key.command()
@click.argument("file", type=_path)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    required=True,
    metavar="PATTERN",
    help="Names it may write, as shell patterns.",
)
@click.option("--label", default="", help="For key list; only the owner can read it.")
@vault_options
def writer(
    file: Path,
    resources: tuple[str, ...],
    label: str,
    access: Access,
) -> None:
    """Write a credential to FILE that can add points and nothing else: it cannot read, and cannot harm what others
    wrote.
    """
    with Run.begin() as run:
        if file.exists():
            raise UsageError("the credential's file exists already", on=str(file), remedy="give another name")
        opened, _ = run.open_owner(access)
        made = keys.export_writer(opened, label or file.stem, resources)
        write_private(file, made.export(opened.store.url).decode())
        policy = keys.store_policy(opened.store.url, made)
    print(f"writer {made.wid.hex()[:8]} may write {', '.join(resources)}; its credential is in {file} (keep it secret)")
    print(f"use it: safehold backup SOURCE --vault {opened.store.url} --writer {file}")
    if policy.startswith("{"):
        print("\nGive the host store access with no more than this policy:\n")
    print(policy)


@key.command()
@click.argument("wid", metavar="WRITER")
@vault_options
def revoke(wid: str, access: Access) -> None:
    """From now on no point of that writer counts; what it wrote before stays."""
    with Run.begin() as run:
        opened, _ = run.open_owner(access)
        done = keys.revoke_writer(opened, wid)
    print(
        f"writer {done[:8]} is revoked: points it makes from now on do not count. Also take its access to the store away."
    )
