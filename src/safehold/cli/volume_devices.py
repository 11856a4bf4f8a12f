"""Volumes as disks of this machine: `safehold volume attach|detach|resize|delete|switch`."""

from __future__ import annotations

import click

from safehold.cli.quantities import size_of
from safehold.cli.running import Run, confirm, json_option, print_json
from safehold.cli.volume_service import volume_client
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_switch import alone, plan_switch
from safehold.compose.volume_switch import switch as switch_volumes
from safehold.model.errors import UsageError
from safehold.model.units import format_duration, format_size

__all__ = ["attach", "delete", "detach", "resize", "switch"]


@click.command()
@click.argument("name")
@click.option("--mount", "place", metavar="DIR", help="Mount it there.")
@click.option("--options", default="", metavar="OPTIONS", help="Mount options, such as noatime.")
@json_option
def attach(name: str, place: str | None, options: str, as_json: bool) -> None:
    """Make a volume a block device of this machine. It waits out a restart of the service. Needs root."""
    with Run.begin() as run, volume_client(run) as client:
        made = client.attach(name, place, options)
    if as_json:
        print_json({"volume": name, "device": made.device, "mount": made.mount})
    else:
        print(made.device + (f" on {made.mount}" if made.mount else ""))


@click.command()
@click.argument("name")
@json_option
def detach(name: str, as_json: bool) -> None:
    """Unmount a volume, if attach mounted it, and take its device away."""
    with Run.begin() as run, volume_client(run) as client:
        made = client.detach(name)
    if as_json:
        print_json({"volume": name, "device": made.device, "mount": made.mount})
    else:
        print(f"{name}: {made.device or 'its storage daemon'} is gone; the volume stays")


@click.command()
@click.argument("name")
@click.option("--size", required=True, help="Such as 200G.")
@json_option
def resize(name: str, size: str, as_json: bool) -> None:
    """Make a detached volume larger. What is on it is made larger with its own tools: resize2fs, xfs_growfs."""
    with Run.begin() as run, volume_client(run) as client:
        client.demand_detached(name, "resized")
        made = client.order("resize", name=name, size=size_of(size, "--size"))
    print_json(made) if as_json else print(f"{name}: {format_size(made['size'])}")


@click.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take it back from the recycle bin.")
@click.option("--for-good", is_flag=True, help="Give its space back at once; also for one in the recycle bin.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and stop.")
@json_option
def delete(name: str, undo: bool, for_good: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Put a volume into the recycle bin, where it stays for a week. Its points stay in the vault."""
    if undo and for_good:
        raise UsageError("--undo and --for-good contradict each other", remedy="give one of them")
    if undo and dry_run:
        raise UsageError(
            "--undo takes it back at once, and nothing goes: it cannot be tried with --dry-run",
            on=name,
            remedy="see what there is to take back: safehold volume list --deleted",
        )
    with Run.begin() as run, volume_client(run) as client:
        if undo:
            client.order("undelete", name=name)
            print_json({"volume": name, "deleted": False}) if as_json else print(f"{name}: taken back")
            return
        text = _what_goes(client, name, for_good)
        if dry_run:
            print_json({"volume": name, "deleted": False}) if as_json else print(f"would delete {text}")
            return
        if not yes:
            confirm(f"delete {text}?", "this deletes a volume", text)
        gone = client.order("delete-for-good" if for_good else "delete", name=name)
        for one in gone if for_good else ():
            if one["problem"]:
                run.ctx.progress.warn(
                    f"{one['entry']}: its record cannot be read; had it not been filled in yet, its point stays pinned → "
                    "safehold point expire says so, and safehold point unpin ends it"
                )
    if as_json:
        print_json({"volume": name, "deleted": True})
        return
    if for_good:
        print(f"{name}: deleted for good")
        return
    print(f"{name}: in the recycle bin for 7 days; take it back: safehold volume delete {name} --undo")


def _what_goes(client: VolumeClient, name: str, for_good: bool) -> str:
    """UsageError where it is attached, or there is no such volume."""
    told = client.order("list")
    gone = [one for one in told["deleted"] if name in (one["name"], one.get("entry"))]
    if for_good and gone and name not in told["broken"] and not any(one["name"] == name for one in told["volumes"]):
        sizes = ["damaged" if one.get("problem") else format_size(one["size"]) for one in gone]
        return f"{name} in the recycle bin, {', '.join(sizes)}"
    client.demand_detached(name, "deleted")
    if name in told["broken"]:
        return f"{name}, which cannot be opened ({told['broken'][name]})"
    shown = client.order("show", name=name)
    pending = sum(1 for one in shown["snapshots"] if one["state"] == "pending")
    return f"{name}, {format_size(shown['size'])}" + (f", {pending} snapshots not yet in the vault" if pending else "")


@click.command()
@click.argument("name")
@click.option("--to", "other", metavar="NAME", help="The volume that takes its place.")
@click.option("--back", is_flag=True, help="NAME goes back to its place; --to says which volume is there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@json_option
def switch(name: str, other: str | None, back: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Put another volume where one is attached: unmount, detach, attach, mount. What uses it has to stop meanwhile."""
    if not other:
        raise UsageError("which volume takes its place?", on=name, remedy="give --to")
    old, new = (other, name) if back else (name, other)
    with Run.begin() as run, volume_client(run) as client, alone(run.paths.volume_switch):
        plan = plan_switch(client, run.paths.volume_switch, old, new)
        where = plan.away
        left = plan.left
        if left is not None:
            run.ctx.progress.note(
                f"the switch of {left.old} to {left.new} did not come to its end; going on from there"
            )
        outage = f"OUTAGE: {where} is away while {new} takes the place of {old}; what uses it has to be stopped"
        if not as_json:
            print(outage, flush=True)
        if dry_run:
            if as_json:
                print_json({"old": old, "new": new, "away": where, "steps": []})
            return
        if not yes:
            confirm("go on?", "a switch is an outage", where)
        steps = switch_volumes(client, run.paths.volume_switch, old, new)
    if as_json:
        told = [{"what": step.what, "seconds": step.seconds} for step in steps]
        print_json({"old": old, "new": new, "away": where, "steps": told})
        return
    for step in steps:
        print(f"  {step.what} ({format_duration(step.seconds)})")
    way = f"safehold volume switch {name} --to {other}" + ("" if back else " --back")
    print(f"done, {format_duration(sum(step.seconds for step in steps))} away; the way back: {way}")
