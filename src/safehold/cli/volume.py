"""`safehold volume`: disks that Safehold serves itself."""

from __future__ import annotations

import math
import os
from typing import Any

import click

from safehold.app.points import diff_points, member_of, parse_selector, pick
from safehold.cli.lazy import LazyGroup
from safehold.cli.quantities import size_of
from safehold.cli.running import (
    Access,
    Run,
    json_option,
    print_json,
    print_table,
    vault_options,
)
from safehold.cli.tags import parse_tags
from safehold.cli.volume_service import volume_client
from safehold.compose.asked import volume_groups
from safehold.compose.credentials import find_credentials
from safehold.compose.volume_brackets import find_brackets
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_service import serve_volumes
from safehold.compose.volume_snapshot import take_snapshot, wait_for_snapshot
from safehold.model.consistency import Consistency
from safehold.model.errors import UsageError, VaultKeyError
from safehold.model.units import format_duration, format_size, format_time
from safehold.objects.location import rooted

__all__ = ["restore_to_volume", "volume"]

_DEVICES = {name: f"safehold.cli.volume_devices:{name}" for name in ("attach", "delete", "detach", "resize", "switch")}


@click.group(cls=LazyGroup, verbs=_DEVICES)
def volume() -> None:
    """Disks that Safehold serves itself: snapshots in an instant, restores that are usable at once."""


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
    with Run.begin() as run, volume_client(run, access) as client:
        made = client.order(
            "create",
            name=name,
            size=size_of(size, "--size") if size else 0,
            vault=rooted(run.address(access)),
            origin=origin or "",
        )
        print_json(made) if as_json else print(_made(made, client))


def restore_to_volume(run: Run, access: Access, selector: str, name: str, as_json: bool) -> None:
    """`restore POINT --to volume:NAME`: a volume of that point, usable at once."""
    with volume_client(run, access) as client:
        made = client.order("create", name=name, size=0, vault=rooted(run.address(access)), origin=selector)
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
    with Run.begin() as run, volume_client(run) as client:
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
        print_table(["volume", "size", "deleted", "state"], [_gone(one) for one in told["deleted"]])
        return
    rows, busy = [], dict(told.get("busy", {}))
    for one in told["volumes"]:
        made = attached.get(one["name"])
        where = (
            f"{made.device} {made.mount}".strip() if made else f"{one['clients']} clients" if one["clients"] else "–"
        )
        what = busy.pop(one["name"], None)
        rows.append(
            [one["name"], format_size(one["size"]), where, _last(one), f"is being {what}" if what else _state(one)]
        )
    rows += [[name, "", "", "", f"is being {what}"] for name, what in busy.items()]
    rows += [[name, "", "", "", f"cannot be opened: {why}"] for name, why in told["broken"].items()]
    print_table(["volume", "size", "attached", "last snapshot", "state"], rows)


def _gone(one: dict[str, Any]) -> list[str]:
    when = format_time(one["deleted"])
    if not one.get("problem"):
        return [one["name"], format_size(one["size"]), when, "ok"]
    more = f"damaged: {one['problem']} → safehold volume delete {one['entry']} --for-good"
    return [one["name"], "", when, more]


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
    with Run.begin() as run, volume_client(run) as client:
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
        waits = "on its way" if one["durable"] else "on its way; a power loss would lose it still"
        note = one["snapshot_problem"] or (more if one["point"] else waits)
        whole = "; compared everything" if one["compared_everything"] else ""
        print(f"  {format_time(one['taken'])}  {one['id'][:8]}  {one['state']:<9}  {one['achieved']}: {note}{whole}")


@volume.command()
@click.argument("name", required=False)
@click.option(
    "--group",
    "names",
    multiple=True,
    metavar="NAME",
    help="Volumes sealed at the same instant, as one point: repeat it, or name a resource of the configuration that has volumes.",
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
    if not names and not name:
        raise UsageError("which volume?", remedy="give its name, or --group NAME for each of several")
    with Run.begin() as run, volume_client(run, access) as client:
        groups = volume_groups(run.paths.config / "safehold.yaml") if names else {}
        several = [one for group in names for one in groups.get(group, [group])]
        wanted = list(dict.fromkeys(several + ([name] if name else [])))
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
                f"{', '.join(wanted)}: snapshot {made['id'][:8]} taken, {_levels(made['levels'])}; "
                f"writes waited {made['pause'] * 1000:.1f} ms{held}"
            )
        if wait:
            made = wait_for_snapshot(client, made["id"], math.inf, run.ctx) | {"levels": made["levels"]}
            if not as_json:
                print(
                    f"completed: point {made['point'][:8]}, {format_size(made['read'])} read, {format_size(made['stored'])} stored"
                )
        elif not as_json:
            print(f"  → pending; it becomes a point behind: safehold volume show {wanted[0]}")
    if as_json:
        print_json(made)


def _levels(levels: dict[str, str]) -> str:
    if len(set(levels.values())) == 1:
        return next(iter(levels.values()))
    return ", ".join(f"{name} {level}" for name, level in levels.items())


@volume.command()
@click.argument("old")
@click.argument("new")
@vault_options
@json_option
def changed(old: str, new: str, access: Access, as_json: bool) -> None:
    """List the byte ranges that differ between two points of a volume: data@A data@B."""
    with Run.begin() as run:
        opened = run.open(access)
        pair = pick(opened, old, new)
        for text, found in zip((old, new), pair, strict=True):
            kind = member_of(found, parse_selector(text).resource).kind
            if kind != "volume":
                raise UsageError(f"this is a {kind} and no disk", on=text, remedy=f"safehold diff {old} {new}")
        difference = diff_points(opened, pair, old, new)
    if as_json:
        print_json({"changed": difference.changed, "ranges": [list(one) for one in difference.ranges]})
        return
    for start, end in difference.ranges:
        print(f"{start} {end - start}")


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

        # The service leaves the directory that these are relative to.
        kit, identity, writer = (path and path.absolute() for path in (access.kit, access.identity, access.writer))
        serve_volumes(
            run.paths,
            lambda: find_credentials(os.environ, kit, identity, writer, nobody),
            ready,
            run.ctx,
        )


@volume.command()
@json_option
def stop(as_json: bool) -> None:
    """End the volume service, to upgrade it or to shut down. Attached disks wait for its return, for half a minute."""
    with Run.begin() as run:
        client = VolumeClient(run.paths, os.environ, run.ctx)
        attached = ", ".join(client.attachments())
        if not client.running():
            print_json({"running": False}) if as_json else print("no volume service is running")
            return
        client.stop()
    if as_json:
        print_json({"running": False, "attached": sorted(client.attachments())})
        return
    print(
        "the volume service has ended"
        + (f"; {attached} wait for it, for half a minute: safehold volume list" if attached else "")
    )
