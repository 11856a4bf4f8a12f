"""What the configuration of unattended runs asks for, and how that went: for whoever wants to know how things stand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safehold.app.problems import Problem, of_resources
from safehold.app.service import Job, Memory, next_due
from safehold.compose.configuration import Configuration, load_configuration
from safehold.compose.paths import Paths
from safehold.compose.unattended import Opener, jobs, same_place
from safehold.model.context import Context
from safehold.model.errors import DamageError, UsageError
from safehold.model.units import format_time
from safehold.vault.vault import Vault

__all__ = ["Asked", "asked_for", "only_vault"]


@dataclass
class Asked:
    """`expected` are the resources that points of one vault are asked for, each with what made its last backup fail (empty: nothing);
    `problems` are all steps that failed last, of whatever vault; `elsewhere` are the addresses of the other vaults. `last` is when the last
    unattended run began (None: there was none), `due` is the step that comes next and when; None for both where there is no configuration.
    """

    expected: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    last: float | None = None
    due: tuple[str, float] | None = None


def asked_for(path: Path, paths: Paths, vault: str, now: float) -> Asked:
    """What the file at `path` asks of the vault at that address. A file that is wrong is a problem; none asks for nothing."""
    asked = Asked()
    if not os.path.isfile(path):
        return asked
    try:
        found = load_configuration(path)
    except UsageError as error:
        asked.problems.append(Problem(f"unattended runs: {error}", error.remedy))
        return asked
    places = [one.place for one in found.vaults.values()]
    asked.elsewhere.extend(place for place in places if same_place(place) != same_place(vault))
    memory = Memory(paths.state / "service.json", lambda text: asked.problems.append(Problem(text)))
    steps: dict[str, tuple[Job, tuple[str, ...]]] = {}
    every = jobs(found, paths)
    for job in every:
        mine = of_resources(job.resource, *job.histories)
        steps |= {f"{step} {job.resource}": (job, mine) for step in ("backup", "expire")}
        # Of another vault's, nothing in this one is concerned.
        whole = ("*",) if _here(found, job, vault) else of_resources(*_histories(every, job.vault))
        steps |= {f"{step} {job.vault}": (job, whole) for step in ("verify", "prune")}
        last = memory.past(f"backup {job.resource}")
        if _here(found, job, vault):
            asked.expected.update(dict.fromkeys(job.histories, last.what if last else ""))
    for step, (job, mine) in steps.items():
        past = memory.past(step)
        if past and past.what:
            what = f"{step} failed on {format_time(past.finished)}: {past.what}"
            where = "" if _here(found, job, vault) else found.vaults[job.vault].place
            if step.startswith("verify ") and past.code == DamageError.exit_code:
                # What it found says itself which resources it is of.
                mine = ()
            asked.problems.append(Problem(what, past.remedy, mine, vault=where))
    asked.last, asked.due = memory.newest(), next_due(every, memory, now, None)
    return asked


def _here(found: Configuration, job: Job, vault: str) -> bool:
    return same_place(found.vaults[job.vault].place) == same_place(vault)


def _histories(every: Sequence[Job], vault: str) -> list[str]:
    return [name for job in every if job.vault == vault for name in job.histories]


def only_vault(path: Path, paths: Paths, ctx: Context) -> Vault | None:
    """The vault of the configuration at `path`, opened as that says, where there is such a file and it has just one. UsageError for a wrong file."""
    if not os.path.isfile(path):
        return None
    found = load_configuration(path)
    return Opener(found, paths, ctx)(next(iter(found.vaults))) if len(found.vaults) == 1 else None
