"""Unattended runs: back up what is due, let go what the rules no longer keep, prune, verify, and tell whoever wants to know.

Each step that fails is told of and the next one goes on: a failed backup must not keep others from being made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from glob import escape
from pathlib import Path
from typing import Protocol

import msgspec

from safehold.app.backup import BackupOptions, BackupOutcome, back_up
from safehold.app.expire import apply_expiry, note_verified, plan_expiry
from safehold.app.host import Host
from safehold.app.prune import Trial, prune_vault
from safehold.app.verify import verify_next
from safehold.model.context import Context
from safehold.model.errors import CancelledError, PartialError, SafeholdError
from safehold.model.remembered import keep, recall
from safehold.model.resource import ResourceRef
from safehold.model.unforeseen import explain
from safehold.policies.retention import KeepRules
from safehold.policies.schedule import Schedule, due_at, is_due
from safehold.ports.source import Source
from safehold.vault.vault import Vault

__all__ = [
    "Job",
    "MakePoint",
    "Memory",
    "Past",
    "Plan",
    "Result",
    "Tell",
    "from_source",
    "metrics",
    "next_due",
    "run_due",
]

PATIENCE = 36 * 3600.0
"""Seconds without a sign of life after which a session is ended."""


@dataclass(frozen=True)
class Plan:
    """When; what to keep (None: everything); seconds and bytes of verification; seconds between prunes."""

    schedule: Schedule
    rules: KeepRules | None = None
    verification: tuple[float, int] | None = None
    pruning: float | None = None


class MakePoint(Protocol):
    """Backs a resource up."""

    def __call__(self, open_vault: Callable[[], Vault], host: Host, ctx: Context) -> BackupOutcome:
        """Return with the point in the vault. SafeholdError."""
        ...


@dataclass(frozen=True)
class Job:
    """A resource, how a point of it is made, the name of its vault, and its plan. `histories` are the names that its points have in the vault."""

    resource: str
    vault: str
    plan: Plan
    make_point: MakePoint
    histories: tuple[str, ...]


def from_source(find: Callable[[Context], tuple[Source, ResourceRef, BackupOptions]]) -> MakePoint:
    """Points of what `find` finds; it is asked anew each time."""

    def make_point(open_vault: Callable[[], Vault], host: Host, ctx: Context) -> BackupOutcome:
        source, ref, options = find(ctx)
        return back_up(open_vault(), source, ref, host, options, ctx)

    return make_point


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


_CUT = (900.0, 3600.0, 4 * 3600.0)
"""Seconds after its start that a step whose process ended in the middle is begun anew. One that ends it each time must not do so for ever."""


class Past(msgspec.Struct, frozen=True):
    """How a step ended last: when, by this machine's clock, its exit code, what went wrong, and what to do about it."""

    finished: float
    code: int = 0
    what: str = ""
    remedy: str = ""


class _Steps(msgspec.Struct):
    times: dict[str, float] = {}
    cut: dict[str, int] = {}
    past: dict[str, Past] = {}


class Memory:
    """When each step was last started, how it ended, and which did not come to their end, in a file of this machine. A machine that cannot
    keep it goes on without, and is told so.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._warned = False
        self._steps = recall(path, _Steps, _Steps())

    def last(self, step: str) -> float | None:
        """Seconds since 1970; None for never."""
        return self._steps.times.get(step)

    def cut(self, step: str, now: float) -> bool:
        """True where the step's process was killed in the middle (a crash, a reboot), and it is time to begin anew."""
        times, last = self._steps.cut.get(step, 0), self.last(step)
        return 0 < times <= len(_CUT) and last is not None and abs(now - last) >= _CUT[times - 1]

    def start(self, step: str, now: float) -> None:
        """Remember a start, before anything is done."""
        self._steps.times[step] = now
        self._steps.cut[step] = self._steps.cut.get(step, 0) + 1
        self._keep()

    def end(self, step: str, past: Past) -> None:
        """The step came to its end, be it a good or a bad one."""
        self._steps.cut.pop(step, None)
        self._steps.past[step] = past
        self._keep()

    def past(self, step: str) -> Past | None:
        """How the step ended last; None where it never did."""
        return self._steps.past.get(step)

    def newest(self) -> float | None:
        """When the last run that had something to do began; None for never."""
        return max(self._steps.times.values(), default=None)

    def _keep(self) -> None:
        try:
            keep(self._path, msgspec.json.encode(self._steps))
        except OSError as error:
            if not self._warned:
                self._warn(
                    f"what was done cannot be remembered ({error}): unless that is put right, the next run does it again"
                )
            self._warned = True


def run_due(
    jobs: Sequence[Job],
    open_vault: Callable[[str], Vault],
    host: Host,
    memory: Memory,
    zone: tzinfo | None,
    tell: Tell,
    trial: Trial,
    ctx: Context,
    *,
    everything: bool = False,
) -> None:
    """Run what is due now (or, with `everything`, all of it) and return. `tell` is told of each step; `trial` is for prunes.

    Verification and expiry follow the backups of their vault, or are begun anew where they were cut; prunes have times of their own. Times
    of day are those of `zone`, or of this machine (None).
    """
    now = ctx.clock.now()

    def due(step: str, schedule: Schedule) -> bool:
        return everything or is_due(schedule, memory.last(step), now, zone) or memory.cut(step, now)

    def step(kind: str, on: str, vault: str, act: Callable[[Result], None]) -> None:
        ctx.cancel.check()
        memory.start(f"{kind} {on}", now)
        result = Result(kind, on, vault, ctx.clock.now())
        try:
            act(result)
        except Exception as error:
            # Whatever it is, the other steps are made, and somebody is told of it.
            result.error = explain(error)
        result.finished = ctx.clock.now()
        if not isinstance(result.error, CancelledError):
            remedy = result.error.remedy if result.error else ""
            memory.end(f"{kind} {on}", Past(result.finished, result.code, str(result.error or ""), remedy))
        tell(result)
        ctx.cancel.check()

    backed_up = [job for job in jobs if due(f"backup {job.resource}", job.plan.schedule)]
    for job in backed_up:
        step("backup", job.resource, job.vault, _backup(job, open_vault, host, ctx))
    for vault in dict.fromkeys(job.vault for job in jobs):
        mine = [job for job in jobs if job.vault == vault]
        verifying = mine if memory.cut(f"verify {vault}", now) else [job for job in mine if job in backed_up]
        budgets = [job.plan.verification for job in verifying if job.plan.verification]
        if budgets:
            step("verify", vault, vault, _verify(vault, budgets, open_vault, ctx))
        # Only now: the only verified point of a resource never expires, and the newest has just been verified.
        for job in mine:
            if job.plan.rules is not None and (job in backed_up or memory.cut(f"expire {job.resource}", now)):
                step("expire", job.resource, vault, _expire(job, open_vault, zone, ctx))
        spans = [job.plan.pruning for job in mine if job.plan.pruning]
        if spans and due(f"prune {vault}", Schedule(every=min(spans))):
            step("prune", vault, vault, _prune(vault, open_vault, host, trial, ctx))


def next_due(jobs: Sequence[Job], memory: Memory, now: float, zone: tzinfo | None) -> tuple[str, float] | None:
    """The step that is due next by the schedules, and when; that is not after `now` where it is due already. None where nothing ever is. Times of
    day are those of `zone`, or of this machine (None).
    """
    schedules = {f"backup {job.resource}": job.plan.schedule for job in jobs}
    for job in jobs:
        if job.plan.pruning:
            spans = [one.plan.pruning for one in jobs if one.vault == job.vault and one.plan.pruning]
            schedules[f"prune {job.vault}"] = Schedule(every=min(spans))
    due = [(step, due_at(schedule, memory.last(step), now, zone)) for step, schedule in schedules.items()]
    return min(due, key=lambda one: one[1], default=None)


def _backup(job: Job, open_vault: Callable[[str], Vault], host: Host, ctx: Context) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        done = result.outcome = job.make_point(lambda: open_vault(job.vault), host, ctx)
        result.figures = {
            "size_bytes": done.size,
            "read_bytes": done.read,
            "stored_bytes": done.stored,
            "partial": len(done.partial),
        }

    return act


def _expire(
    job: Job, open_vault: Callable[[str], Vault], zone: tzinfo | None, ctx: Context
) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        vault = open_vault(job.vault)
        assert job.plan.rules is not None
        names = [escape(name) for name in job.histories]
        plan = plan_expiry(vault, names, job.plan.rules, vault.store_time(), zone, ctx)
        note_verified(vault, plan)
        expired = apply_expiry(vault, plan.expiring, ctx)
        result.figures = {"expired": len(expired), "points": len(plan.decisions) - len(expired)}
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


def _prune(
    name: str, open_vault: Callable[[str], Vault], host: Host, trial: Trial, ctx: Context
) -> Callable[[Result], None]:
    def act(result: Result) -> None:
        report = prune_vault(open_vault(name), host, PATIENCE, trial, ctx)
        result.figures = {"deleted_bytes": report.deleted, "live_bytes": report.live, "waiting": len(report.waiting)}

    return act


def metrics(results: Sequence[Result], before: Mapping[str, float], jobs: Sequence[Job]) -> dict[str, float]:
    """Figures by their names in Prometheus' text format, those of `before` that nothing new is known of included, as far as `jobs` still ask
    for the step.
    """
    wanted = {_labels(step, job.resource, job.vault) for job in jobs for step in ("backup", "expire")}
    wanted |= {_labels(step, job.vault, job.vault) for job in jobs for step in ("verify", "prune")}
    out = {name: value for name, value in before.items() if name.partition("{")[2].removesuffix("}") in wanted}
    for result in results:
        labels = _labels(result.step, result.on, result.vault)
        out[f"safehold_last_run_timestamp_seconds{{{labels}}}"] = result.finished
        out[f"safehold_last_run_code{{{labels}}}"] = result.code
        out[f"safehold_last_run_duration_seconds{{{labels}}}"] = result.finished - result.started
        if result.code == 0:
            out[f"safehold_last_success_timestamp_seconds{{{labels}}}"] = result.finished
        for name, value in result.figures.items():
            out[f"safehold_{result.step}_{name}{{{labels}}}"] = value
    return out


def _labels(step: str, on: str, vault: str) -> str:
    return f'step="{step}",on="{_escaped(on)}",vault="{_escaped(vault)}"'


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
