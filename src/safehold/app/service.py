"""Unattended runs: back up what is due, let go what the rules no longer keep, prune, verify, and tell whoever wants to know.

Each step that fails is told of and the next one goes on: a failed backup must not keep others from being made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Protocol

import msgspec

from safehold.app.backup import BackupOptions, BackupOutcome, Host, back_up
from safehold.app.expire import apply_expiry, plan_expiry
from safehold.app.prune import prune_vault
from safehold.app.verify import verify_next
from safehold.model.context import Context
from safehold.model.errors import PartialError, SafeholdError
from safehold.model.resource import ResourceRef
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import Schedule, is_due
from safehold.ports.source import Source
from safehold.vault.vault import Vault

__all__ = ["Job", "Memory", "Plan", "Result", "Tell", "metrics", "run_due"]

PATIENCE = 36 * 3600.0
"""Seconds without a sign of life after which a session is ended."""


@dataclass(frozen=True)
class Plan:
    """When; what to keep (None: everything); seconds and bytes of verification; seconds between prunes."""

    schedule: Schedule
    rules: KeepRules | None = None
    verification: tuple[float, int] | None = None
    pruning: float | None = None


@dataclass(frozen=True)
class Job:
    """A resource, how to find its source, the name of its vault, and its plan."""

    resource: str
    vault: str
    plan: Plan
    options: BackupOptions
    source: Callable[[], tuple[Source, ResourceRef]]


@dataclass
class Result:
    """What came of one step: `step` is backup, expire, verify or prune, `on` the resource or vault."""

    step: str
    on: str
    vault: str
    started: float
    finished: float = 0.0
    error: SafeholdError | None = None
    outcome: BackupOutcome | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def code(self) -> int:
        """The exit code that a run of this step alone would have had."""
        if self.error is not None:
            return self.error.exit_code
        return PartialError.exit_code if self.outcome and self.outcome.partial else 0


class Tell(Protocol):
    """Told of each result, good or bad."""

    def __call__(self, result: Result) -> None:
        """May not raise."""
        ...


class _Started(msgspec.Struct):
    times: dict[str, float] = {}


class Memory:
    """When each step was last started, in a file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._times = msgspec.json.decode(path.read_bytes(), type=_Started).times
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._times = {}

    def last(self, step: str) -> float | None:
        """Seconds since 1970; None for never."""
        return self._times.get(step)

    def start(self, step: str, now: float) -> None:
        """Remember a start, before anything is done: a step that kills its process is not repeated at once."""
        self._times[step] = now
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(_Started(self._times)))
        fresh.replace(self._path)


def run_due(
    jobs: Sequence[Job],
    open_vault: Callable[[str], Vault],
    host: Host,
    memory: Memory,
    zone: tzinfo,
    tell: Tell,
    ctx: Context,
    *,
    everything: bool = False,
) -> list[Result]:
    """Run what is due now (or, with `everything`, all of it) and return; upkeep follows the backups of its vault."""
    results: list[Result] = []
    now = ctx.clock.now()

    def due(step: str, schedule: Schedule) -> bool:
        return everything or is_due(schedule, memory.last(step), now, zone)

    def step(kind: str, on: str, vault: str, act: Callable[[Result], None]) -> Result:
        ctx.cancel.check()
        memory.start(f"{kind} {on}", now)
        result = Result(kind, on, vault, ctx.clock.now())
        try:
            act(result)
        except SafeholdError as error:
            result.error = error
        result.finished = ctx.clock.now()
        results.append(result)
        tell(result)
        ctx.cancel.check()
        return result

    backed_up: dict[str, list[Job]] = {}
    for job in jobs:
        if due(f"backup {job.resource}", job.plan.schedule):
            step("backup", job.resource, job.vault, _backup(job, open_vault, host, ctx))
            backed_up.setdefault(job.vault, []).append(job)
    for vault, mine in backed_up.items():
        budgets = [job.plan.verification for job in mine if job.plan.verification]
        if budgets:
            step("verify", vault, vault, _verify(vault, budgets, open_vault, ctx))
        # Only now: the only verified point of a resource never expires, and the newest has just been verified.
        for job in mine:
            if job.plan.rules is not None:
                step("expire", job.resource, vault, _expire(job, open_vault, zone, ctx))
        spans = [job.plan.pruning for job in mine if job.plan.pruning]
        if spans and due(f"prune {vault}", Schedule(every=min(spans))):
            step("prune", vault, vault, _prune(vault, open_vault, host, ctx))
    return results


def _backup(job: Job, open_vault: Callable[[str], Vault], host: Host, ctx: Context) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        source, ref = job.source()
        result.outcome = back_up(open_vault(job.vault), source, ref, host, job.options, ctx)
        done = result.outcome
        result.figures = {
            "size_bytes": done.size,
            "read_bytes": done.read,
            "stored_bytes": done.stored,
            "partial": len(done.partial),
        }

    return act


def _expire(job: Job, open_vault: Callable[[str], Vault], zone: tzinfo, ctx: Context) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        vault = open_vault(job.vault)
        assert job.plan.rules is not None
        plan = plan_expiry(vault, [job.resource], job.plan.rules, zone, ctx)
        apply_expiry(vault, plan.expiring, ctx)
        result.figures = {"expired": len(plan.expiring), "points": len(plan.decisions) - len(plan.expiring)}
        plan.damaged.fail(vault.store.url)

    return act


def _verify(
    name: str, budgets: Sequence[tuple[float, int]], open_vault: Callable[[str], Vault], ctx: Context
) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        vault = open_vault(name)
        rolled = verify_next(vault, min(span for span, _ in budgets), max(size for _, size in budgets), ctx)
        result.figures = {
            "read_bytes": rolled.read,
            "proved": len(rolled.proved),
            "waiting_bytes": rolled.waiting_bytes,
            "problems": len(rolled.findings.found),
        }
        rolled.findings.fail(vault.store.url)

    return act


def _prune(name: str, open_vault: Callable[[str], Vault], host: Host, ctx: Context) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        report = prune_vault(open_vault(name), host, PATIENCE, ctx, dry_run=False)
        result.figures = {"deleted_bytes": report.deleted, "live_bytes": report.live, "waiting": len(report.waiting)}

    return act


def metrics(results: Sequence[Result], before: Mapping[str, float]) -> dict[str, float]:
    """Figures by their names in Prometheus' text format, those of `before` that nothing new is known of included."""
    out = dict(before)
    for result in results:
        labels = f'step="{result.step}",on="{_escaped(result.on)}",vault="{_escaped(result.vault)}"'
        out[f"safehold_last_run_timestamp_seconds{{{labels}}}"] = result.finished
        out[f"safehold_last_run_code{{{labels}}}"] = result.code
        out[f"safehold_last_run_duration_seconds{{{labels}}}"] = result.finished - result.started
        if result.code == 0:
            out[f"safehold_last_success_timestamp_seconds{{{labels}}}"] = result.finished
        for name, value in result.figures.items():
            out[f"safehold_{result.step}_{name}{{{labels}}}"] = value
    return out


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
