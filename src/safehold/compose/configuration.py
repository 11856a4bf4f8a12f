"""The configuration file: which resources go into which vault, when, and for how long. Errors name file, line and field."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml

from safehold.compose.fields import Fault, line_of, refuse_duplicates, refuse_other_names, refuse_unusable
from safehold.compose.patterns import path_matcher
from safehold.model.errors import UsageError
from safehold.model.resource import can_be_chosen
from safehold.model.units import parse_size, parse_span
from safehold.objects.location import local_place
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import Schedule, parse_schedule
from safehold.quiesce.specs import parse_bracket

__all__ = ["Configuration", "OnFailure", "PlanSettings", "ResourceSettings", "VaultSettings", "load_configuration"]


_LARGEST = 256 * 1024
"""Characters of a file; what is longer is not read to its end."""


class VaultSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A vault: its place, and one way to open it. `environment` are variables such as AWS_ENDPOINT_URL."""

    place: str
    passphrase_file: str = ""
    passphrase_command: str = ""
    kit: str = ""
    identity: str = ""
    writer: str = ""
    environment: dict[str, str] = {}


class ResourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is backed up: one disk, or files and directories and what of them is left out, or live volumes, sealed at one instant, or what a
    `command` writes. `brackets` make it quiet meanwhile, for at most `downtime`.
    """

    plan: str
    paths: list[str] = []
    volumes: list[str] = []
    command: str = ""
    vault: str = ""
    exclude: list[str] = []
    exclude_caches: bool = False
    one_file_system: bool = False
    require: str = ""
    brackets: list[str] = []
    downtime: str = ""
    tags: dict[str, str] = {}

    @property
    def limit(self) -> float | None:
        """Seconds for which brackets may be held; None where nothing is said of it. ValueError."""
        return parse_span(self.downtime) if self.downtime else None


class _Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    hanoi: int = 0
    window: str = ""
    tags: list[str] = []

    @property
    def span(self) -> float:
        return parse_span(self.window) if self.window else 0.0


class _Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    older_than: str = "30d"
    read_budget: str = "10GB"

    @property
    def age(self) -> float:
        return parse_span(self.older_than)

    @property
    def budget(self) -> int:
        return parse_size(self.read_budget)


class OnFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told: a command (it gets a JSON document on its standard input), or a web address that the document is sent to."""

    command: str = ""
    webhook: str = ""


class PlanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When (`every: 6h`, or `at: "02:30"`), what is kept, how much is verified after each backup, and how often the vault is pruned."""

    every: str = ""
    at: str = ""
    keep: _Keep | None = None
    verify: _Verify | None = None
    prune: str = ""
    on_failure: OnFailure | None = None

    @property
    def schedule(self) -> Schedule:
        """ValueError where there is none, or two."""
        if bool(self.every) == bool(self.at):
            raise ValueError('give one of every: 6h and at: "02:30"')
        return Schedule(every=_some_time(self.every)) if self.every else parse_schedule(self.at)

    @property
    def rules(self) -> KeepRules | None:
        """What to keep; None where nothing expires."""
        keep = self.keep
        if keep is None:
            return None
        counts = {
            name: getattr(keep, name) for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly", "hanoi")
        }
        if min(counts.values()) < 0:
            raise ValueError("keep counts are 0 or more")
        rules = KeepRules(**counts, window=keep.span, tags=tuple(keep.tags))
        if rules.empty:
            raise ValueError("keep says nothing to keep; leave it out to keep everything")
        return rules

    @property
    def verification(self) -> tuple[float, int] | None:
        """Seconds after which data is read again, and bytes for one run."""
        return (self.verify.age, self.verify.budget) if self.verify else None

    @property
    def pruning(self) -> float | None:
        """Seconds between prunes; None for never."""
        return _some_time(self.prune) if self.prune else None


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. `metrics` is a file that is written in Prometheus' text format after each run."""

    version: int
    vaults: dict[str, VaultSettings]
    resources: dict[str, ResourceSettings]
    plans: dict[str, PlanSettings]
    metrics: str = ""

    def vault_of(self, resource: ResourceSettings) -> str:
        """The name of the vault that a resource goes into: the only one where none is named."""
        return resource.vault or next(iter(self.vaults))


def _some_time(text: str) -> float:
    span = parse_span(text)
    if not span:
        raise ValueError("no time at all")
    return span


def load_configuration(path: Path) -> Configuration:
    """Read and check the file. UsageError with the line and the field of the first thing that is wrong."""
    try:
        # Without waiting for whoever may write into a pipe of that name some day.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as file:
            os.set_blocking(file.fileno(), True)
            text = file.read(_LARGEST + 1)
    except OSError as error:
        begin = "write an example: safehold config init; or " * isinstance(error, FileNotFoundError)
        raise UsageError(
            f"cannot be read ({error.strerror})", on=str(path), remedy=f"{begin}give its place with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError("is no text", on=str(path)) from error
    if len(text) > _LARGEST:
        raise UsageError(f"is longer than {_LARGEST} characters: that is no configuration", on=str(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except RecursionError:
        raise UsageError(
            "is nested too deeply", on=str(path), remedy="nothing in it needs more than five levels"
        ) from None
    except (ValueError, LookupError, AttributeError) as error:
        # What looks like a date or a number and is none; of a tagged one the library asks what it has not found.
        raise UsageError(f"holds a value that is none ({error})", on=str(path), remedy="put it in quotes") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(
            f"is no YAML ({getattr(error, 'problem', error)})", on=f"{path}{line}", remedy="correct that line"
        ) from error
    try:
        refuse_duplicates(root)
        refuse_other_names(root)
        refuse_unusable(root)
        return _check(plain)
    except Fault as fault:
        where = ".".join(fault.path) or "file"
        raise UsageError(
            f"{where}: {fault.what}",
            on=f"{path}:{line_of(root, fault.path)}",
            remedy=fault.remedy or "correct that line",
        ) from None


def _check(plain: Any) -> Configuration:
    if not isinstance(plain, dict):
        raise Fault((), "holds no settings", "begin with: version: 1")
    if plain.get("version") != 1:
        raise Fault(("version",), "this program reads version 1", "write version: 1")
    try:
        found = msgspec.convert(plain, Configuration)
    except msgspec.ValidationError as error:
        raise _translated(error, plain) from None
    if not found.vaults:
        raise Fault(("vaults",), "there is none")
    for name, vault in found.vaults.items():
        ways = [w for w in ("passphrase_file", "passphrase_command", "kit", "identity", "writer") if getattr(vault, w)]
        if len(ways) != 1:
            raise Fault(("vaults", name), "give one way to open it", "passphrase_file: /etc/safehold/passphrase")
        for variable in vault.environment:
            if not variable or "=" in variable:
                raise Fault(("vaults", name, "environment"), f"{variable!r} is no name of a variable")
        _check_place(("vaults", name, "place"), vault.place)
        for way in ways:
            if way != "passphrase_command":
                _whole(("vaults", name, way), os.path.expanduser(getattr(vault, way)))
    for name, resource in found.resources.items():
        if not can_be_chosen(name):
            raise Fault(("resources", name), "a name is of printable characters other than @")
        _known(("resources", name, "plan"), resource.plan, found.plans)
        if resource.vault or len(found.vaults) > 1:
            _known(("resources", name, "vault"), resource.vault, found.vaults)
        _check_resource(("resources", name), resource)
        if resource.require not in ("", "none", "crash", "filesystem", "application"):
            raise Fault(
                ("resources", name, "require"), f"{resource.require!r} is none of none, crash, filesystem, application"
            )
    for name, plan in found.plans.items():
        for field, read in _readings(plan):
            try:
                read()
            except ValueError as error:
                raise Fault(("plans", name, *field), str(error)) from None
        if plan.on_failure is not None:
            _check_told(("plans", name, "on_failure"), plan.on_failure)
    if found.metrics:
        _whole(("metrics",), found.metrics)
    return found


def _readings(plan: PlanSettings) -> Iterator[tuple[tuple[str, ...], Callable[[], object]]]:
    """What is read out of a plan's texts, each with its field; ValueError where that cannot be done."""
    yield ("every",) if plan.every else ("at",), lambda: plan.schedule
    if plan.keep is not None:
        keep = plan.keep
        yield ("keep", "window"), lambda: keep.span
        yield ("keep",), lambda: plan.rules
    if plan.verify is not None:
        verify = plan.verify
        yield ("verify", "older_than"), lambda: verify.age
        yield ("verify", "read_budget"), lambda: verify.budget
    yield ("prune",), lambda: plan.pruning


def _whole(path: tuple[str, ...], place: str) -> None:
    """A path that means the same whatever directory the program is started in: a timer's is another than a shell's."""
    if not os.path.isabs(place):
        raise Fault(path, f"{place!r} does not begin with a slash", "write the whole path")


def _check_place(path: tuple[str, ...], place: str) -> None:
    try:
        parts = urlsplit(place)
        for local in local_place(place):
            _whole(path, str(local))
    except (ValueError, RuntimeError) as error:
        raise Fault(path, f"is no address of a vault ({error})") from None
    if not place or ("://" in place and (parts.scheme not in ("s3", "file") or not (parts.netloc or parts.path))):
        raise Fault(path, f"{place!r} is no address of a vault", "write s3://bucket/prefix, or a directory")
    if parts.scheme == "s3" and not parts.netloc:
        raise Fault(path, "there is no bucket in it", "write s3://bucket/prefix")


def _words(path: tuple[str, ...], command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise Fault(path, f"is no command ({error})") from None


def _check_told(path: tuple[str, ...], told: OnFailure) -> None:
    if not (told.command or told.webhook):
        raise Fault(path, "tells nobody", "give a command or a webhook, or leave it out")
    command = _words((*path, "command"), told.command)
    if command and "/" in command[0]:
        _whole((*path, "command"), command[0])
    try:
        parts = urlsplit(told.webhook)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise Fault((*path, "webhook"), f"is no address ({error})") from None
    if told.webhook and (parts.scheme not in ("https", "http") or not host):
        raise Fault((*path, "webhook"), f"{told.webhook!r} is no address of a web server", "https://example.org/hook")
    if parts.scheme == "http" and not re.fullmatch(r"127\.\d+\.\d+\.\d+|localhost|::1", host):
        raise Fault((*path, "webhook"), "is not encrypted", "use an https:// address")


def _check_resource(path: tuple[str, ...], resource: ResourceSettings) -> None:
    if sum(map(bool, (resource.paths, resource.volumes, resource.command))) != 1:
        raise Fault(
            path,
            "give one of paths, volumes and command",
            "paths: [/etc], or volumes: [data], or command: pg_dump orders",
        )
    if resource.command:
        words = _words((*path, "command"), resource.command)
        if not words:
            raise Fault((*path, "command"), "names no program")
        if "/" in words[0]:
            _whole((*path, "command"), words[0])
    for place in resource.paths:
        _whole((*path, "paths"), os.path.expanduser(place.removeprefix("tree:").removeprefix("volume:")))
    try:
        path_matcher(resource.exclude, "exclude")
    except UsageError as error:
        raise Fault((*path, "exclude"), error.what) from None
    for what, asked, field in (("volumes", resource.volumes, "downtime"), ("commands", resource.command, "brackets")):
        for senseless in ("exclude", "exclude_caches", "one_file_system", field) if asked else ():
            if getattr(resource, senseless):
                raise Fault((*path, senseless), f"says nothing of {what}", "leave it out")
    if resource.command and resource.require not in ("", "none"):
        raise Fault((*path, "require"), "what a program writes proves nothing of itself", "leave it out")
    if resource.downtime and not resource.brackets:
        raise Fault((*path, "downtime"), "a downtime of what?", "say what is made quiet: brackets: ['readonly:/srv']")
    try:
        for bracket in resource.brackets:
            parse_bracket(bracket)
    except UsageError as error:
        raise Fault((*path, "brackets"), str(error), error.remedy) from None
    try:
        limit = resource.limit
    except ValueError as error:
        raise Fault((*path, "downtime"), str(error)) from None
    if limit == 0:
        raise Fault((*path, "downtime"), "no time at all")


def _known(path: tuple[str, ...], name: str, among: dict[str, Any]) -> None:
    if name in among:
        return
    near = difflib.get_close_matches(name, among, 1)
    raise Fault(
        path,
        f"there is no {path[-1]} {name!r}",
        f"did you mean {near[0]}?" if near else f"there is: {', '.join(among)}",
    )


def _translated(error: msgspec.ValidationError, plain: Any) -> Fault:
    what, _, where = str(error).partition(" - at `$")
    path: list[str] = []
    at = plain
    for key in re.findall(r"\.(\w+)|\[(\.\.\.|\d+)\]", where):
        name = key[0] or key[1]
        if name == "...":
            # The library does not say which entry of a mapping; it is the first that does not fit.
            name = next((str(k) for k in at if _unfit(path, at[k])), "") if isinstance(at, dict) else "0"
        path.append(name)
        at = at.get(name) if isinstance(at, dict) else at
    unknown = re.search(r"unknown field `(\w+)`", what)
    if unknown:
        return Fault((*path, unknown[1]), "no such setting")
    missing = re.search(r"missing required field `(\w+)`", what)
    return Fault(tuple(path), f"{missing[1]} is missing" if missing else what.lower())


def _unfit(path: list[str], value: Any) -> bool:
    kinds: dict[str, type] = {"vaults": VaultSettings, "resources": ResourceSettings, "plans": PlanSettings}
    kind = kinds.get(path[-1]) if path else None
    try:
        msgspec.convert(value, kind or dict)
    except msgspec.ValidationError:
        return True
    return False
