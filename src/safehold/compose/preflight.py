"""What a configuration names and this machine lacks: it is noticed when somebody checks the file, and not first at night."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from safehold.compose.configuration import Configuration
from safehold.compose.credentials import find_credentials, find_passphrase
from safehold.model.errors import SafeholdError
from safehold.objects.location import local_place

__all__ = ["preflight"]


def preflight(configuration: Configuration) -> Iterator[str]:
    """A line for each file, directory and command that is not there, or is of another kind, beginning with its field, and with what to do behind an
    arrow.
    """
    for name, vault in configuration.vaults.items():
        for way in ("passphrase_file", "kit", "identity", "writer"):
            if getattr(vault, way):
                yield from _key(f"vaults.{name}.{way}", way, getattr(vault, way))
        # A shell reads it: of anything but a plain path it cannot be told what the program is.
        plain = re.match(r"(/[\w./+-]+)(?: |$)", vault.passphrase_command)
        if plain:
            yield from _program(f"vaults.{name}.passphrase_command", plain[1])
        for directory in local_place(vault.place):
            if not os.path.isdir(directory):
                yield f"vaults.{name}.place: {directory} is no directory → mount it, or make the vault: safehold vault init {directory}"
    for name, resource in configuration.resources.items():
        for place in resource.paths:
            path = os.path.expanduser(place.removeprefix("tree:").removeprefix("volume:"))
            if not os.path.lexists(path):
                yield f"resources.{name}.paths: {path} is not there → correct the path, or take the resource out"
            elif resource.paths == [path] and os.path.exists(path) and _no_content(os.stat(path).st_mode):
                yield f"resources.{name}.paths: {path} is no file, directory or disk → name what is to be backed up"
        yield from _program(f"resources.{name}.command", resource.command)
    for name, plan in configuration.plans.items():
        if plan.on_failure is not None:
            yield from _program(f"plans.{name}.on_failure.command", plan.on_failure.command)
    metrics = configuration.metrics
    if metrics and os.path.isdir(metrics):
        yield f"metrics: {metrics} is a directory → name a file in it"
    elif metrics and not os.access(os.path.dirname(metrics), os.W_OK):
        yield f"metrics: {os.path.dirname(metrics)} is no directory that can be written to → make it, or leave metrics out"


def _program(field: str, command: str) -> Iterator[str]:
    words = shlex.split(command)
    if words and shutil.which(words[0]) is None:
        yield f"{field}: {words[0]} is no program that can be started → install it, or give its whole path"


def _no_content(mode: int) -> bool:
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode))


def _key(field: str, way: str, path: str) -> Iterator[str]:
    unreadable = list(_readable(field, path))
    yield from unreadable
    if unreadable:
        return
    given = Path(path).expanduser()
    one = {way: given}
    try:
        if way == "passphrase_file":
            find_passphrase({"SAFEHOLD_PASSPHRASE_FILE": str(given)}, "SAFEHOLD_PASSPHRASE", str)
        else:
            find_credentials({}, one.get("kit"), one.get("identity"), one.get("writer"), str)
    except (SafeholdError, UnicodeDecodeError) as error:
        remedy = getattr(error, "remedy", "") or "write it as text"
        yield f"{field}: {error} → {remedy}"


def _readable(field: str, path: str) -> Iterator[str]:
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        typed = f"write the passphrase into it: (umask 077; cat > {shlex.quote(path)})"
        yield f"{field}: {path} is not there → {typed if field.endswith('passphrase_file') else 'put it there'}"
    elif not os.path.isfile(path) or not os.access(path, os.R_OK):
        yield f"{field}: {path} is no file that can be read → see who may read it: ls -l {shlex.quote(path)}"
