"""What the configuration of unattended runs asks for, and how that went: for whoever wants to know how things stand."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from safehold.app.service import Memory, Past
from safehold.compose.configuration import load_configuration
from safehold.compose.paths import Paths
from safehold.compose.unattended import Opener, jobs, same_place
from safehold.model.context import Context
from safehold.model.errors import UsageError
from safehold.model.units import format_time
from safehold.vault.vault import Vault

__all__ = ["Asked", "asked_for", "only_vault", "volume_groups"]


@dataclass(frozen=True)
class Asked:
    """`expected` are the resources that points of one vault are asked for, each with what made its last backup fail (empty: nothing);
    `problems` are all steps that failed last, of whatever vault; `elsewhere` are the addresses of the other vaults.
    """

    expected: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


def asked_for(path: Path, paths: Paths, vault: str) -> Asked:
    """What the file at `path` asks of the vault at that address. A file that is wrong is a problem; none asks for nothing."""
    asked = Asked()
    if not os.path.isfile(path):
        return asked
    try:
        found = load_configuration(path)
    except UsageError as error:
        asked.problems.append(f"unattended runs: {error}")
        return asked
    places = [one.place for one in found.vaults.values()]
    asked.elsewhere.extend(place for place in places if same_place(place) != same_place(vault))
    memory = Memory(paths.state / "service.json", asked.problems.append)
    steps: dict[str, Past | None] = {}
    for job in jobs(found, paths):
        steps |= {name: memory.past(name) for name in (f"backup {job.resource}", f"expire {job.resource}")}
        steps |= {name: memory.past(name) for name in (f"verify {job.vault}", f"prune {job.vault}")}
        last = steps[f"backup {job.resource}"]
        if same_place(found.vaults[job.vault].place) == same_place(vault):
            asked.expected.update(dict.fromkeys(job.histories, last.what if last else ""))
    asked.problems.extend(
        f"{step} failed on {format_time(past.finished)}: {past.what}"
        for step, past in steps.items()
        if past and past.what
    )
    return asked


def volume_groups(path: Path) -> dict[str, list[str]]:
    """The volumes of each resource that has some in the configuration at `path`; none where there is no such file. UsageError for a wrong one."""
    if not os.path.isfile(path):
        return {}
    return {name: one.volumes for name, one in load_configuration(path).resources.items() if one.volumes}


def only_vault(path: Path, paths: Paths, ctx: Context) -> Vault | None:
    """The vault of the configuration at `path`, opened as that says, where there is such a file and it has just one. UsageError for a wrong file."""
    if not os.path.isfile(path):
        return None
    found = load_configuration(path)
    return Opener(found, paths, ctx)(next(iter(found.vaults))) if len(found.vaults) == 1 else None
