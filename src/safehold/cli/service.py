"""`safehold service …` and `safehold config …`: unattended runs by a configuration file."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
from pathlib import Path

import click

from safehold.app.host import this_host
from safehold.app.service import Memory, Result, run_due
from safehold.cli.running import Run, json_option, print_json
from safehold.compose.configuration import Configuration, load_configuration
from safehold.compose.paths import Paths
from safehold.compose.preflight import preflight
from safehold.compose.unattended import OPENED_BY, Opener, jobs, notify, variables, write_metrics
from safehold.compose.wiring import named_vault
from safehold.model.errors import UsageError
from safehold.model.units import format_duration, format_size
from safehold.objects.check import broken_order

__all__ = ["config", "example", "service"]

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file; default: safehold.yaml in /etc/safehold.",
)

EXAMPLE = """\
# What is backed up, where to, when, and for how long. Check it: safehold config check
version: 1

vaults:
  main:
    place: {place}{hint}
{opens}

resources:
  etc:
    paths: [/etc]
    plan: nightly
  # web:
  #   paths: [/srv/www, /var/lib/www]
  #   exclude: ['*.tmp', '**/cache/**']
  #   plan: nightly
  # orders:
  #   command: pg_dump --format=custom orders   # what it writes, if it ends well
  #   plan: nightly
  # db:
  #   volumes: [db-data, db-log]             # live volumes, sealed at one instant
  #   brackets: ['fsfreeze:/srv/db']         # made quiet for that moment
  #   plan: hourly

plans:
  nightly:
    at: "02:30"                              # each day; or: at: sun 03:00, or: every: 6h
    keep: {last: 3, daily: 7, weekly: 5, monthly: 12, yearly: 7}
    verify: {older_than: 30d, read_budget: 10GB}
    prune: 7d
    # on_failure: {command: /usr/local/bin/page-me}       # or: {webhook: https://example.org/hook}
  # hourly:
  #   every: 1h
  #   keep: {last: 24, daily: 7}

# metrics: /var/lib/prometheus/node-exporter/safehold.prom
"""

SERVICE = """\
[Unit]
Description=Safehold backups that are due
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={program} service run --config {config}
Nice=10
IOSchedulingClass=idle
# What stops in the middle is taken up again: nothing that was uploaded is lost.
KillSignal=SIGTERM
TimeoutStopSec=60
UMask=0077
NoNewPrivileges=yes
RestrictRealtime=yes
# Nothing here gives it mounts of its own: what brackets unmount has to be unmounted for everybody.
"""

TIMER = """\
[Unit]
Description=Looks every five minutes whether a Safehold backup is due

[Timer]
OnCalendar=*:0/5
RandomizedDelaySec=60
Persistent=yes

[Install]
WantedBy=timers.target
"""

VOLUMES = """\
[Unit]
Description=Safehold volumes, served over NBD
# Attached disks wait half a minute for a service that went away: a restart or an upgrade is not noticed.

[Service]
Type=exec
ExecStart={program} volume serve
{environment}Restart=always
RestartSec=1
TimeoutStopSec=90
UMask=0077
NoNewPrivileges=yes
# Files: eight for each volume, four more for each of its snapshots that waits for the vault, one for each client.
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
"""


@click.group()
def service() -> None:
    """Unattended runs."""


@click.group()
def config() -> None:
    """The configuration file of unattended runs."""


def _place(run: Run, path: Path | None) -> Path:
    return path or run.paths.config / "safehold.yaml"


@config.command()
@_config_option
@json_option
def check(path: Path | None, as_json: bool) -> int:
    """Read the file and say what it asks for; the first thing that is wrong is named with its line.

    Ends with 1 where it names files, paths or programs that are not on this machine.
    """
    with Run.begin() as run:
        place = _place(run, path)
        found = load_configuration(place)
        asked = jobs(found, run.paths)
        lacking = list(preflight(found))
    if as_json:
        resources = [{"name": job.resource, "vault": job.vault} for job in asked]
        print_json({"config": str(place), "resources": resources, "lacking": lacking})
        return int(bool(lacking))
    for job in asked:
        settings = found.resources[job.resource]
        plan = found.plans[settings.plan]
        volumes = [f"volume {name}" for name in settings.volumes]
        what = ", ".join(settings.paths or volumes or [f"what {settings.command!r} writes"])
        print(f"{job.resource}: {what} into {job.vault}, {plan.at or f'every {plan.every}'}")
    for line in lacking:
        print(f"lacking: {line}")
    things = f"{len(lacking)} thing{'s' * (len(lacking) > 1)}"
    print(f"not ready: this machine lacks {things} that {place} names" if lacking else f"ok: {place}")
    return int(bool(lacking))


@config.command("init")
@_config_option
def init_verb(path: Path | None) -> None:
    """Write an example to begin with."""
    with Run.begin() as run:
        place = _place(run, path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise UsageError(
                f"cannot be written ({error.strerror})", on=str(place), remedy="give another place with --config"
            ) from error
        with os.fdopen(fd, "w") as file:
            file.write(example(place.absolute().parent, os.environ, run.paths))
    print(f"Edit {place}, then: safehold config check{'' if path is None else f' --config {path}'}")


def example(directory: Path, environment: os._Environ[str], paths: Paths) -> str:
    """The example with the vault and what opens it as the environment has them; else with places to be filled in, in the file's directory."""
    known = named_vault(None, environment, paths)
    place = os.path.abspath(known) if known and "://" not in known else known
    for setting, variable in OPENED_BY.items():
        if environment.get(variable):
            value = environment[variable]
            value = value if setting == "passphrase_command" else os.path.abspath(os.path.expanduser(value))
            opens = f"    {setting}: {_quoted(value)}"
            break
    else:
        file = _quoted(str(directory / "passphrase"))
        opens = f"    # The vault's passphrase, for nobody else to read. Type it into: (umask 077; cat > {file})\n    passphrase_file: {file}"
    hint = "" if place else "                     # or s3://bucket/prefix"
    filled = {"{place}": _quoted(place or "/backup/vault"), "{hint}": hint, "{opens}": opens}
    text = EXAMPLE
    for name, value in filled.items():
        text = text.replace(name, value)
    return text


def _quoted(text: str) -> str:
    """As YAML takes it: what is no plain word in double quotes."""
    return text if re.fullmatch(r"[\w./][\w./:+-]*", text, re.ASCII) else json.dumps(text)


@service.command("run")
@_config_option
@click.option("--all", "everything", is_flag=True, help="Everything now, whatever the schedules say.")
@json_option
def run_verb(path: Path | None, everything: bool, as_json: bool) -> int:
    """Do what is due now, and end: back up, expire, verify, prune. Meant for a timer; two at once do no harm, the second ends at once.

    The worst exit code of the steps is the run's.
    """
    with Run.begin() as run:
        found = load_configuration(_place(run, path))
        run.paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The directory itself: on a full disk there is no room for a file to lock.
        lock = os.open(run.paths.state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                run.ctx.progress.note("another run is at work")
                return 0
            results = _run(run, found, everything=everything, quiet=as_json)
        finally:
            os.close(lock)
    if as_json:
        print_json({"steps": [_document(result) for result in results]})
    elif not results:
        print("nothing is due")
    return max((result.code for result in results), default=0)


def _run(run: Run, found: Configuration, *, everything: bool, quiet: bool) -> list[Result]:
    results: list[Result] = []

    def tell(result: Result) -> None:
        results.append(result)
        try:
            if not quiet:
                print(_line(result), flush=True)
        finally:
            notify(found, result, run.ctx)

    memory = Memory(run.paths.state / "service.json", run.ctx.progress.warn)
    opener = Opener(found, run.paths, run.ctx)
    asked = jobs(found, run.paths)
    try:
        run_due(
            asked,
            opener,
            this_host(run.paths.state),
            memory,
            None,
            tell,
            broken_order,
            run.ctx,
            everything=everything,
        )
    finally:
        if found.metrics and results:
            write_metrics(Path(found.metrics), results, asked, run.ctx)
    return results


def _line(result: Result) -> str:
    took = format_duration(result.finished - result.started)
    if result.error is not None:
        remedy = f"\n  → {result.error.remedy}" if result.error.remedy else ""
        return f"FAILED  {result.step} {result.on}: {result.error} ({took}){remedy}"
    told = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {format_size(value) if name.endswith('_bytes') else int(value)}"
        for name, value in result.figures.items()
    )
    return f"{'PARTIAL' if result.code else 'ok':<7} {result.step} {result.on}: {told} ({took})"


def _document(result: Result) -> dict[str, object]:
    error = result.error
    return {
        "step": result.step,
        "on": result.on,
        "vault": result.vault,
        "code": result.code,
        "what": str(error) if error else "",
        "remedy": error.remedy if error else "",
        "figures": result.figures,
        "seconds": round(result.finished - result.started, 3),
    }


@service.command("install-units")
@_config_option
@click.option("--user", is_flag=True, help="For this user instead of the system.")
@click.option(
    "--to", "directory", type=click.Path(path_type=Path, file_okay=False), help="Write the units here instead."
)
def install_units(path: Path | None, user: bool, directory: Path | None) -> None:
    """Write a systemd service and timer that run what is due and a service that serves volumes, and print how to switch them on."""
    with Run.begin() as run:
        place = _place(run, path).absolute()
        settings = load_configuration(place)
        home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        where = directory or (home / "systemd/user" if user else Path("/etc/systemd/system"))
        program = (
            shutil.which("safehold", path=str(Path(sys.executable).parent)) or shutil.which("safehold") or "safehold"
        )
        try:
            where.mkdir(parents=True, exist_ok=True)
            (where / "safehold.service").write_text(SERVICE.format(program=program, config=place))
            (where / "safehold.timer").write_text(TIMER)
            first = next(iter(settings.vaults.values()))
            opens = "".join(f'Environment="{name}={value}"\n' for name, value in variables(first).items())
            (where / "safehold-volumes.service").write_text(VOLUMES.format(program=program, environment=opens))
        except OSError as error:
            raise UsageError(
                f"units cannot be written ({error.strerror})", on=str(where), remedy="run it as root, or with --user"
            ) from error
    flag = " --user" if user else ""
    print(f"safehold.service, safehold.timer and safehold-volumes.service are in {where}. Next:")
    print(f"  systemctl{flag} daemon-reload && systemctl{flag} enable --now safehold.timer")
    print(f"  systemctl{flag} enable --now safehold-volumes.service      # where this machine serves volumes")
