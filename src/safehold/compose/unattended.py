"""Puts an unattended run together from the configuration: vaults, sources, and who is told of what."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from safehold.app.backup import BackupOptions, BackupOutcome
from safehold.app.host import Host
from safehold.app.opening import open_vault
from safehold.app.service import Job, MakePoint, Plan, Result, from_source, metrics
from safehold.compose.configuration import Configuration, ResourceSettings, VaultSettings
from safehold.compose.credentials import find_credentials
from safehold.compose.paths import Paths
from safehold.compose.quiet import find_downtime
from safehold.compose.sources import Sources, TreeOptions
from safehold.compose.volume_brackets import find_brackets
from safehold.compose.volume_client import VolumeClient
from safehold.compose.volume_snapshot import take_snapshot, wait_for_snapshot
from safehold.compose.wiring import open_stores, places
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import FailedError, UsageError, VaultKeyError
from safehold.model.resource import ResourceRef
from safehold.objects.location import local_place
from safehold.ports.source import Source
from safehold.vault.vault import Vault

__all__ = ["OPENED_BY", "Opener", "jobs", "notify", "same_place", "variables", "write_metrics"]

OPENED_BY = {
    "passphrase_file": "SAFEHOLD_PASSPHRASE_FILE",
    "passphrase_command": "SAFEHOLD_PASSPHRASE_COMMAND",
    "kit": "SAFEHOLD_KIT",
    "identity": "SAFEHOLD_IDENTITY",
    "writer": "SAFEHOLD_WRITER",
}
"""The settings that say what opens a vault, and the environment variables that mean the same."""

_PATIENCE = 60.0
"""Seconds that a failure command or address may take."""
_UPLOAD_PATIENCE = 600.0
"""Seconds that a snapshot may be kept from the vault before the run says so and goes on; it gets there all the same."""
_METRIC = re.compile(r"^(\w+\{.*\}) (\S+)$")


class Opener:
    """Opens the vaults of a configuration, each when first needed and anew each time: a run may outlast what another machine changes."""

    def __init__(self, configuration: Configuration, paths: Paths, ctx: Context) -> None:
        self._configuration, self._paths, self._ctx = configuration, paths, ctx

    def __call__(self, name: str) -> Vault:
        """See `app.opening.open_vault`."""
        settings = self._configuration.vaults[name]
        with _environment(settings.environment):
            stores = open_stores(settings.place, self._ctx.clock)
            credentials = find_credentials(variables(settings), None, None, None, _nobody)
            return open_vault(stores, credentials, places(self._paths), self._ctx)


def variables(settings: VaultSettings) -> dict[str, str]:
    """The settings as the environment variables that mean the same."""
    given = {variable: str(getattr(settings, name)) for name, variable in OPENED_BY.items()}
    return {variable: value for variable, value in given.items() if value}


def _nobody() -> str:
    raise VaultKeyError(
        "nobody is there to be asked for a passphrase", remedy="set passphrase_file in the configuration"
    )


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def jobs(configuration: Configuration, paths: Paths) -> list[Job]:
    """What the configuration asks for, in its order."""
    out = []
    for name, resource in configuration.resources.items():
        plan = configuration.plans[resource.plan]
        vault = configuration.vault_of(resource)
        settings = configuration.vaults[vault]
        if resource.volumes:
            make_point, histories = _of_volumes(name, resource, settings, paths), tuple(resource.volumes)
        else:
            make_point, histories = from_source(_source(name, resource, settings.place, paths)), (name,)
        terms = Plan(plan.schedule, plan.rules, plan.verification, plan.pruning)
        out.append(Job(name, vault, terms, make_point, histories))
    return out


def _required(resource: ResourceSettings) -> Consistency | None:
    return Consistency.parse(resource.require) if resource.require else None


def _source(
    name: str, resource: ResourceSettings, place: str, paths: Paths
) -> Callable[[Context], tuple[Source, ResourceRef, BackupOptions]]:
    def find(ctx: Context) -> tuple[Source, ResourceRef, BackupOptions]:
        tree = TreeOptions(tuple(resource.exclude), resource.exclude_caches, resource.one_file_system)
        sources = Sources(tree, paths, place)
        if len(resource.paths) > 1:
            source, ref = sources.join(resource.paths, name)
        else:
            source, ref = sources.resolve(f"command:{resource.command}" if resource.command else resource.paths[0])
            ref = replace(ref, name=name, chosen=True)
        options = BackupOptions(_required(resource), resource.tags)
        if resource.brackets:
            quiet, source = find_downtime(resource.brackets, resource.limit, source, ref, paths, place, ctx)
            options = replace(options, downtime=quiet)
        return source, ref, options

    return find


def _of_volumes(name: str, resource: ResourceSettings, settings: VaultSettings, paths: Paths) -> MakePoint:
    """Snapshots of live volumes, at one instant; the service that serves them has to be there."""

    def make_point(open_vault: Callable[[], Vault], host: Host, ctx: Context) -> BackupOutcome:
        began = ctx.clock.monotonic()
        client = VolumeClient(paths, os.environ, ctx)
        if not client.running():
            # One that was started from here would end with this run, whoever uses the volumes by then.
            raise FailedError(
                "nobody serves the volumes",
                on=", ".join(resource.volumes),
                remedy="systemctl start safehold-volumes, or safehold volume serve",
            )
        volumes = [client.order("show", name=volume) for volume in resource.volumes]
        for one in volumes:
            if same_place(one["vault"]) != same_place(settings.place):
                raise UsageError(
                    f"snapshots of this volume go to {one['vault']}, not to {settings.place}",
                    on=one["name"],
                    remedy=f"name that vault for resource {name}",
                )
        made, pause = take_snapshot(
            client,
            resource.volumes,
            _required(resource),
            lambda served: find_brackets(resource.brackets, served, paths, ctx),
            resource.tags,
            ctx,
        )
        done = wait_for_snapshot(client, made["id"], _UPLOAD_PATIENCE, ctx)
        return BackupOutcome(
            name,
            done["point"],
            sum(one["size"] for one in volumes),
            done["read"],
            done["stored"],
            done["stored"],
            0,
            Consistency.parse(done["achieved"]),
            ctx.clock.monotonic() - began,
            pause=pause,
        )

    return make_point


def same_place(address: str) -> str:
    """An address by which two of one vault are equal."""
    return next((os.path.realpath(place) for place in local_place(address)), address.rstrip("/"))


def notify(configuration: Configuration, result: Result, ctx: Context) -> None:
    """Tell of a failure, as the plan says; what goes wrong with that is warned of."""
    if not result.code:
        return
    plans = {
        configuration.resources[name].plan
        for name in configuration.resources
        if result.on == name or result.on == configuration.vault_of(configuration.resources[name])
    }
    error = result.error
    document = {
        "step": result.step,
        "on": result.on,
        "vault": result.vault,
        "code": result.code,
        "what": str(error) if error else f"partial: {len(result.outcome.partial) if result.outcome else 0} problems",
        "remedy": error.remedy if error else "",
        "run": ctx.run_id,
    }
    body = json.dumps(document).encode()
    for plan in sorted(plans):
        told = configuration.plans[plan].on_failure
        if told is None:
            continue
        try:
            if told.command:
                subprocess.run(
                    shlex.split(told.command), input=body, timeout=_PATIENCE, check=True, stdout=subprocess.DEVNULL
                )
            if told.webhook:
                request = urllib.request.Request(told.webhook, body, {"Content-Type": "application/json"})
                urllib.request.urlopen(request, timeout=_PATIENCE).close()
        except (OSError, subprocess.SubprocessError, ValueError) as fault:
            ctx.progress.warn(f"nobody could be told of the failure ({fault})")


def write_metrics(path: Path, results: Sequence[Result], asked: Sequence[Job], ctx: Context) -> None:
    """Replace the metrics file; figures of steps that did not run stay, unless none of the jobs that are `asked` for has them."""
    before: dict[str, float] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text().splitlines():
            match = _METRIC.match(line)
            if match:
                before[match[1]] = float(match[2])
    figures = metrics(results, before, asked)
    names = sorted({name.partition("{")[0] for name in figures})
    text = ""
    for name in names:
        text += f"# TYPE {name} gauge\n"
        text += "".join(
            f"{full} {value:.17g}\n" for full, value in sorted(figures.items()) if full.partition("{")[0] == name
        )
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        ctx.progress.warn(f"the metrics cannot be written ({error})")
