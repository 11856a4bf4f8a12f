"""`safehold volume`: disks that Safehold serves itself."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from safehold.app.points import diff_points, parse_selector
from safehold.cli.points import parse_tags
from safehold.cli.running import (
    Access,
    Run,
    ask_passphrase,
    confirm,
    json_option,
    print_json,
    print_table,
    vault_options,
)
from safehold.compose.credentials import find_credentials
from safehold.compose.quiet import find_brackets
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_service import serve_volumes
from safehold.compose.volume_snapshot import take_snapshot, wait_for_snapshot
from safehold.compose.volume_switch import read_underway
from safehold.compose.volume_switch import switch as switch_volumes
from safehold.model.consistency import Consistency
from safehold.model.errors import UsageError, VaultKeyError
from safehold.model.units import format_duration, format_size, format_time, parse_size

__all__ = ["restore_to_volume", "volume"]

_SECRETS = ("SAFEHOLD_PASSPHRASE", "SAFEHOLD_PASSPHRASE_FILE", "SAFEHOLD_PASSPHRASE_COMMAND", "SAFEHOLD_KIT")
_OTHERS = ("SAFEHOLD_IDENTITY", "SAFEHOLD_WRITER")


@click.group()
def volume() -> None:
    """Disks that Safehold serves itself: snapshots in an instant, restores that are usable at once."""


@contextlib.contextmanager
def _client(run: Run, access: Access | None = None) -> Iterator[VolumeClient]:
    """The service's client. A service that has to be started opens the vault like this run would."""
    environment = dict(os.environ)
    if access is not None:
        given = {"SAFEHOLD_KIT": access.kit, "SAFEHOLD_IDENTITY": access.identity, "SAFEHOLD_WRITER": access.writer}
        environment |= {name: str(path.absolute()) for name, path in given.items() if path}
    client = VolumeClient(run.paths, environment, run.ctx)
    if not any(environment.get(name) for name in (*_SECRETS, *_OTHERS)) and sys.stdin.isatty() and not client.running():
        environment["SAFEHOLD_PASSPHRASE"] = ask_passphrase()
        client = VolumeClient(run.paths, environment, run.ctx)
    yield client


def _bytes(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error), on="--size") from error


@volume.command()
@click.argument("name")
@click.option("--size", help="Such as 100G. With --from it may be left out.")
@click.option(
    "--from", "origin", metavar="RESOURCE@WHEN", help="Begin with the content of a point; it is filled in behind."
)
@vault_options
@json_option
def create(name: str, size: str | None, origin: str | None, access: Access, as_json: bool) -> None:
    """Make a volume: empty, or with --from with the content of a point, usable at once."""
    if not size and not origin:
        raise UsageError("how large?", on=name, remedy="give --size, or --from a point")
    with Run.begin() as run, _client(run, access) as client:
        made = client.order(
            "create", name=name, size=_bytes(size) if size else 0, vault=run.address(access), origin=origin or ""
        )
        print_json(made) if as_json else print(_made(made, client))


def restore_to_volume(run: Run, access: Access, selector: str, name: str, as_json: bool) -> None:
    """`restore POINT --to volume:NAME`: a volume of that point, usable at once."""
    with _client(run, access) as client:
        made = client.order("create", name=name, size=0, vault=run.address(access), origin=selector)
        print_json(made) if as_json else print(_made(made, client))


def _made(made: dict[str, Any], client: VolumeClient) -> str:
    text = f"{made['name']}: {format_size(made['size'])}"
    if made["origin"]:
        text += f", content of {made['origin'][:-24]}; {format_size(made['missing'])} are filled in behind"
    return text + f"\n  → safehold volume attach {made['name']}, or without root: {client.exports.format(made['name'])}"


@volume.command(name="list")
@click.option("--deleted", is_flag=True, help="What lies in the recycle bin.")
@json_option
def list_(deleted: bool, as_json: bool) -> None:
    """Show all volumes of this machine."""
    with Run.begin() as run, _client(run) as client:
        told = client.order("list")
        attached = client.attachments()
        for one in told["volumes"]:
            _add_device_problem(one, client)
    if as_json:
        for one in told["volumes"]:
            one["device"] = attached[one["name"]].device if one["name"] in attached else ""
        print_json(told)
        return
    if deleted:
        rows = [[one["name"], format_size(one["size"]), format_time(one["deleted"])] for one in told["deleted"]]
        print_table(["volume", "size", "deleted"], rows)
        return
    rows = []
    for one in told["volumes"]:
        made = attached.get(one["name"])
        where = (
            f"{made.device} {made.mount}".strip() if made else f"{one['clients']} clients" if one["clients"] else "–"
        )
        rows.append([one["name"], format_size(one["size"]), where, _last(one), _state(one)])
    rows += [[name, "", "", "", f"cannot be opened: {why}"] for name, why in told["broken"].items()]
    print_table(["volume", "size", "attached", "last snapshot", "state"], rows)


def _add_device_problem(one: dict[str, Any], client: VolumeClient) -> None:
    # The service knows nothing of devices.
    one["problem"] = "; ".join(filter(None, (client.device_problem(one["name"]), one["problem"])))


def _last(one: dict[str, Any]) -> str:
    if not one["snapshots"]:
        return "never"
    last = one["snapshots"][-1]
    return f"{format_time(last['taken'])} {last['state']}"


def _state(one: dict[str, Any]) -> str:
    if one["read_only"]:
        return f"READ-ONLY: {one['problem']}"
    if one["problem"]:
        return str(one["problem"])
    return f"filling in, {format_size(one['missing'])} to go" if one["missing"] else "ok"


@volume.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Tell all about one volume and its snapshots."""
    with Run.begin() as run, _client(run) as client:
        told = client.order("show", name=name)
        _add_device_problem(told, client)
        made = client.attachments().get(name)
        told["device"], told["mount"] = (made.device, made.mount) if made else ("", "")
        told["nbd"] = client.exports.format(name)
    if as_json:
        print_json(told)
        return
    print(f"{name}: {format_size(told['size'])}, {_state(told)}")
    print(f"  vault     {told['vault']}")
    if told["origin"]:
        print(f"  made of   {told['origin']}")
    print(f"  attached  {' '.join(filter(None, (told['device'], told['mount']))) or '–'}")
    print(f"  nbd       {told['nbd']}")
    if told["suspect"]:
        print(f"  note      {told['suspect']}")
    for one in told["snapshots"]:
        more = f"point {one['point'][:8]}, {format_size(one['read'])} read, {format_size(one['stored'])} stored"
        note = one["snapshot_problem"] or (more if one["point"] else "on its way")
        whole = "; compared everything" if one["compared_everything"] else ""
        print(f"  {format_time(one['taken'])}  {one['id'][:8]}  {one['state']:<9}  {one['achieved']}: {note}{whole}")


@volume.command()
@click.argument("name", required=False)
@click.option(
    "--group",
    "names",
    multiple=True,
    metavar="NAME",
    help="Volumes sealed at the same instant, as one point. Repeat it.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Tag the point.")
@click.option(
    "--require",
    type=click.Choice([c.label for c in reversed(Consistency)]),
    help="Least consistency to accept; anything less is a failure. Without it: what the brackets reach, else crash.",
)
@click.option(
    "--bracket",
    "brackets",
    multiple=True,
    metavar="KIND:WHAT",
    help="Made quiet for the moment: fsfreeze:DIR, readonly:DIR, unmount:DIR, guest-agent:SOCKET, hook:COMMAND. In order; let go of in reverse.",
)
@click.option("--wait", is_flag=True, help="Return once the point is in the vault.")
@vault_options
@json_option
def snapshot(
    name: str | None,
    names: tuple[str, ...],
    tags: tuple[str, ...],
    require: str | None,
    brackets: tuple[str, ...],
    wait: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Hold the content of a volume as it is at this instant, and bring it to the vault behind."""
    wanted = [*names, *([name] if name else [])]
    if not wanted:
        raise UsageError("which volume?", remedy="give its name, or --group NAME for each of several")
    with Run.begin() as run, _client(run, access) as client:
        made, pause = take_snapshot(
            client,
            wanted,
            Consistency.parse(require) if require else None,
            lambda served: find_brackets(brackets, served, run.paths, run.ctx),
            dict(parse_tags(tags)),
            run.ctx,
        )
        if not as_json:
            held = f"; held for {format_duration(pause)}" if brackets else ""
            print(
                f"{', '.join(wanted)}: snapshot {made['id'][:8]} taken, {made['achieved']}; "
                f"writes waited {made['pause'] * 1000:.1f} ms{held}"
            )
        if wait:
            made = wait_for_snapshot(client, made["id"], math.inf, run.ctx)
            if not as_json:
                print(
                    f"completed: point {made['point'][:8]}, {format_size(made['read'])} read, {format_size(made['stored'])} stored"
                )
        elif not as_json:
            print(f"  → pending; it becomes a point behind: safehold volume show {wanted[0]}")
    if as_json:
        print_json(made)


@volume.command()
@click.argument("old")
@click.argument("new")
@vault_options
@json_option
def changed(old: str, new: str, access: Access, as_json: bool) -> None:
    """List the byte ranges that differ between two points of a volume: data@A data@B."""
    with Run.begin() as run:
        opened = run.open(access)
        parse_selector(old), parse_selector(new)
        difference = diff_points(opened, opened.points()[0], old, new)
    if as_json:
        print_json({"changed": difference.changed, "ranges": [list(one) for one in difference.ranges]})
        return
    for start, end in difference.ranges:
        print(f"{start} {end - start}")


@volume.command()
@click.argument("name")
@click.option("--mount", "place", metavar="DIR", help="Mount it there.")
@click.option("--options", default="", metavar="OPTIONS", help="Mount options, such as noatime.")
@json_option
def attach(name: str, place: str | None, options: str, as_json: bool) -> None:
    """Make a volume a block device of this machine. It waits out a restart of the service. Needs root."""
    with Run.begin() as run, _client(run) as client:
        made = client.attach(name, place, options)
    if as_json:
        print_json({"volume": name, "device": made.device, "mount": made.mount})
    else:
        print(made.device + (f" on {made.mount}" if made.mount else ""))


@volume.command()
@click.argument("name")
def detach(name: str) -> None:
    """Unmount a volume, if attach mounted it, and take its device away."""
    with Run.begin() as run, _client(run) as client:
        made = client.detach(name)
    print(f"{name}: {made.device} is gone; the volume stays")


@volume.command()
@click.argument("name")
@click.option("--size", required=True, help="Such as 200G.")
def resize(name: str, size: str) -> None:
    """Make a detached volume larger. What is on it is made larger with its own tools: resize2fs, xfs_growfs."""
    with Run.begin() as run, _client(run) as client:
        client.demand_detached(name, "resized")
        made = client.order("resize", name=name, size=_bytes(size))
    print(f"{name}: {format_size(made['size'])}")


@volume.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take it back from the recycle bin.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and stop.")
def delete(name: str, undo: bool, yes: bool, dry_run: bool) -> None:
    """Put a volume into the recycle bin, where it stays for a week. Its points stay in the vault."""
    with Run.begin() as run, _client(run) as client:
        if undo:
            client.order("undelete", name=name)
            print(f"{name}: taken back")
            return
        client.demand_detached(name, "deleted")
        told = client.order("show", name=name)
        pending = sum(1 for one in told["snapshots"] if one["state"] == "pending")
        text = f"{name}, {format_size(told['size'])}" + (
            f", {pending} snapshots not yet in the vault" if pending else ""
        )
        if dry_run:
            print(f"would delete {text}")
            return
        if not yes:
            confirm(f"delete {text}?", "this deletes a volume", text)
        client.order("delete", name=name)
    print(f"{name}: in the recycle bin for 7 days; take it back: safehold volume delete {name} --undo")


@volume.command()
@click.argument("name")
@click.option("--to", "other", metavar="NAME", help="The volume that takes its place.")
@click.option("--back", is_flag=True, help="NAME goes back to its place; --to says which volume is there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
def switch(name: str, other: str | None, back: bool, yes: bool, dry_run: bool) -> None:
    """Put another volume where one is attached: unmount, detach, attach, mount. What uses it has to stop meanwhile."""
    if not other:
        raise UsageError("which volume takes its place?", on=name, remedy="give --to")
    old, new = (other, name) if back else (name, other)
    with Run.begin() as run, _client(run) as client:
        left = read_underway(run.paths.volume_switch)
        if left is not None and {left.old, left.new} == {old, new}:
            where = left.mount or f"what was {left.old}"
            print(f"the switch of {left.old} to {left.new} did not come to its end; going on from there")
        else:
            made = client.found(old)
            where = f"{made.device}" + (f" on {made.mount}" if made.mount else "")
        print(f"OUTAGE: {where} is away while {new} takes the place of {old}; what uses it has to be stopped")
        if dry_run:
            return
        if not yes:
            confirm("go on?", "a switch is an outage", where)
        steps = switch_volumes(client, run.paths.volume_switch, old, new)
    for step in steps:
        print(f"  {step.what} ({format_duration(step.seconds)})")
    way = f"safehold volume switch {name} --to {other}" + ("" if back else " --back")
    print(f"done, {format_duration(sum(step.seconds for step in steps))} away; the way back: {way}")


@volume.command()
@vault_options
def serve(access: Access) -> None:
    """Serve this machine's volumes over NBD on a unix socket, until stopped. The other verbs start it where it does not run."""
    with Run.begin() as run:

        def nobody() -> str:
            raise VaultKeyError(
                "the volume service has nothing that opens the vault",
                remedy="restart it with SAFEHOLD_PASSPHRASE_FILE, SAFEHOLD_PASSPHRASE_COMMAND or SAFEHOLD_KIT set",
            )

        def ready() -> None:
            run.ctx.progress.note(f"serving volumes on {run.paths.volume_exports}")

        serve_volumes(
            run.paths,
            lambda: find_credentials(os.environ, access.kit, access.identity, access.writer, nobody),
            ready,
            run.ctx,
        )


@volume.command()
def stop() -> None:
    """End the volume service, to upgrade it or to shut down. Attached disks wait for its return, for half a minute."""
    with Run.begin() as run:
        client = VolumeClient(run.paths, os.environ, run.ctx)
        attached = ", ".join(client.attachments())
        client.stop()
    print(
        "the volume service has ended"
        + (f"; {attached} wait for it, for half a minute: safehold volume list" if attached else "")
    )
