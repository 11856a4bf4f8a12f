"""`safehold point unpin`: points that are kept for volumes which are gone."""

from __future__ import annotations

import click

from safehold.app.host import this_host
from safehold.app.pins import kept_for
from safehold.app.pins import unpin as let_go
from safehold.blocks.inventory import find_volumes
from safehold.cli.running import Access, Run, confirm, json_option, print_json, vault_options
from safehold.model.shown import printable

__all__ = ["unpin"]


@click.command()
@click.argument("selector", metavar="RESOURCE@WHEN")
@click.option("--volume", metavar="NAME", default="", help="Only what keeps it for a volume of that name.")
@click.option("--host", metavar="HOST", default="", help="Only what keeps it for volumes of that host.")
@click.option("--dry-run", is_flag=True, help="Say what the point is kept for, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@vault_options
@json_option
def unpin(selector: str, volume: str, host: str, dry_run: bool, yes: bool, access: Access, as_json: bool) -> None:
    """Have a point no longer kept for a volume that is gone with its host, so that it can be expired.

    A volume that is still there lets go by itself, once it is filled in or `volume delete --for-good` was said of it. One that still needs
    the point loses what it has not got yet when the point is expired; of a volume of this host that is refused.
    """
    with Run.begin() as run:
        opened = run.open(access)
        kept = kept_for(opened, selector, volume, host, find_volumes(run.paths.volumes), this_host(run.paths.state))
        what = printable(", ".join(str(one) for one in kept.dependents))
        name = f"point {kept.point.id[:8]}"
        if not dry_run:
            if not yes:
                confirm(
                    f"{name} is kept for {what}. If that still exists, it loses what it has not got yet. Go on?",
                    "this gives up what is filled in from the point",
                    f"{name}: {what}",
                )
            let_go(opened, kept)
    if as_json:
        for_ = [{"pin": one.pin, "volume": one.volume, "host": one.host} for one in kept.dependents]
        print_json({"point": kept.point.id, "dry_run": dry_run, "unpinned": for_})
    elif dry_run:
        print(f"{name} is kept for {what}")
    else:
        print(f"{name} is no longer kept for {what}; to let it go: safehold point expire @{kept.point.id[:8]}")
