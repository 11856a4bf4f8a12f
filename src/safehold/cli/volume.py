"""`safehold volume`: disks that Safehold serves itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

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
from safehold.cli.volume_service import volume_client
from safehold.compose.volume_client import VolumeClient
from safehold.model.errors import UsageError
from safehold.model.units import format_size, format_time
from safehold.objects.location import rooted

__all__ = ["restore_to_volume", "volume"]

_ELSEWHERE = {
    "volume_devices": ("attach", "delete", "detach", "resize", "switch"),
    "volume_points": ("changed", "snapshot"),
    "volume_serving": ("serve",),
}
"""The verbs of other modules: what they need takes longer to import than most verbs take."""

_VERBS = {verb: f"safehold.cli.{module}:{verb}" for module, verbs in _ELSEWHERE.items() for verb in verbs}


@click.group(cls=LazyGroup, verbs=_VERBS)
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
        problems = client.device_problems()
        for one in told["volumes"]:
            _add_device_problem(one, problems)
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


def _add_device_problem(one: dict[str, Any], problems: Mapping[str, str]) -> None:
    # The service knows nothing of devices.
    one["problem"] = "; ".join(filter(None, (problems.get(one["name"]), one["problem"])))


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
        _add_device_problem(told, client.device_problems())
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
