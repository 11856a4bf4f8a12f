"""Several brackets at once: entered in order, let go of in reverse, each step timed, and a watchdog over all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, SafeholdError, StillHeldError
from safehold.model.quiet import Quieted
from safehold.ports.bracket import Bracket, Undo
from safehold.quiesce.guard import Guard, Released, Terms, arm

__all__ = ["Held", "capture_quietly", "hold"]

_T = TypeVar("_T")
_Arm = Callable[[Sequence[Undo], Terms], Guard]

_BEATS = 4.0
"""Beats in the time that the watchdog bears without one: three may be late."""


@dataclass
class _Step:
    """One bracket with its times, seconds since 1970; `leaving` is filled in once it is let go of."""

    bracket: Bracket
    level: Consistency
    entering: tuple[float, float]
    leaving: tuple[float, float] = (0.0, 0.0)


class Held:
    """What is quiet at the moment; made by `hold`."""

    def __init__(self, guard: Guard | None, require: Consistency, ctx: Context) -> None:
        """`require` is what the user asked for. Without a guard nothing is held."""
        self._guard, self._require, self._ctx = guard, require, ctx
        self._stack = contextlib.ExitStack()
        self._steps: list[_Step] = []
        self._broken = False

    @property
    def level(self) -> Consistency:
        """What the brackets vouch for: the most that one of them says, as each makes quiet what the others could not."""
        if self._broken:
            return Consistency.NONE
        return max((step.level for step in self._steps), default=Consistency.NONE)

    @property
    def record(self) -> tuple[Quieted, ...]:
        """What was done; whole once all was let go of. What did not hold to the end vouches for nothing."""
        return tuple(
            Quieted(
                s.bracket.spec,
                (Consistency.NONE if self._broken else s.level).label,
                s.bracket.expected,
                s.entering,
                s.leaving,
            )
            for s in self._steps
        )

    def enter(self, brackets: Sequence[Bracket], limit: float) -> None:
        """Take all steps within `limit` seconds. ConsistencyError at the first that fails; what came before is held then."""
        end = self._ctx.clock.monotonic() + limit
        for number, bracket in enumerate(brackets):
            self._stack.enter_context(self._take(number, bracket, max(0.0, end - self._ctx.clock.monotonic())))

    @contextlib.contextmanager
    def _take(self, number: int, bracket: Bracket, seconds: float) -> Iterator[None]:
        assert self._guard is not None
        guard, clock = self._guard, self._ctx.clock
        began = clock.now()
        passing: BaseException | None = None
        step: _Step | None = None
        try:
            with bracket.hold(seconds, lambda process=0: guard.enter(number, process)) as level:
                step = _Step(bracket, level, (began, clock.now()))
                # The time may have been over while it became quiet; the watchdog knows.
                guard.held(number)
                self._steps.append(step)
                try:
                    yield
                except BaseException as error:
                    passing = error
                    raise
                finally:
                    step.leaving = (clock.now(), 0.0)
            step.leaving = (step.leaving[0], clock.now())
        except SafeholdError as error:
            if error is passing or not isinstance(error, StillHeldError):
                guard.left(number)
            if step is None or error is passing or not self._let_go_before(error):
                raise
            step.leaving = (step.leaving[0], clock.now())
            if passing is not None:
                raise passing from None
            return
        # After any other exception nobody knows whether the bracket's own end ran: the watchdog does it again.
        guard.left(number)

    def _let_go_before(self, error: SafeholdError) -> bool:
        """True where a bracket only says that it was not held to the end, and that was told already."""
        return self._broken and isinstance(error, ConsistencyError) and not isinstance(error, StillHeldError)

    def confirm(self) -> Consistency:
        """The level, asked when the capture was made or its last byte was read.

        ConsistencyError where not all was held until this moment; NONE instead of it, with a warning, where the user asked for no
        more than a crash-consistent capture.
        """
        if self._guard is not None:
            try:
                self._guard.confirm()
            except ConsistencyError as error:
                if self._require > Consistency.CRASH:
                    raise
                self._ctx.progress.warn(f"{error}; the brackets vouch for nothing")
                self._broken = True
        return self.level

    def release(self) -> None:
        """Let go of all, in reverse. Further calls do nothing.

        ConsistencyError where something was not held to the end, unless `confirm` has told so already; StillHeldError where something could not
        be let go of.
        """
        guard, self._guard = self._guard, None
        if guard is None:
            return
        try:
            try:
                self._stack.close()
            finally:
                released = self._released(guard)
        finally:
            guard.close()
        if released is not None and released.still:
            raise StillHeldError(
                "not everything could be let go of; the watchdog keeps trying",
                on="; ".join(released.still),
                remedy="see the page Frozen file system of the runbook",
            )

    def _released(self, guard: Guard) -> Released | None:
        """What the watchdog says in the end; None where it is gone, as `confirm` has told already."""
        try:
            return guard.release()
        except ConsistencyError as error:
            if self._let_go_before(error):
                return None
            raise


@contextlib.contextmanager
def hold(
    brackets: Sequence[Bracket], terms: Terms, require: Consistency, ctx: Context, arm: _Arm = arm
) -> Iterator[Held]:
    """Quiet inside the with-block. The watchdog is armed before the first step, and told that its owner lives until the end.

    ConsistencyError where a step fails: all is let go of then. Where `require` is no more than a crash-consistent capture, and that was
    asked for, it goes on without the brackets instead, with a warning.
    """
    try:
        held = _enter(brackets, terms, require, ctx, arm) if brackets else Held(None, require, ctx)
    except StillHeldError:
        raise
    except ConsistencyError as error:
        if require > Consistency.CRASH:
            raise
        ctx.progress.warn(f"{error}; going on without brackets")
        held = Held(None, require, ctx)
    try:
        yield held
    except BaseException:
        _release_after_failure(held, ctx)
        raise
    held.release()


def _enter(brackets: Sequence[Bracket], terms: Terms, require: Consistency, ctx: Context, arm: _Arm) -> Held:
    for bracket in brackets:
        bracket.prepare()
    guard = arm([bracket.undo() for bracket in brackets], terms)
    held = Held(guard, require, ctx)
    try:
        _check_place(guard, brackets, ctx)
        threading.Thread(target=_beat, args=(guard, terms.grace / _BEATS), daemon=True).start()
        held.enter(brackets, terms.limit)
    except BaseException as error:
        cause = _let_go(guard) if isinstance(error, ConsistencyError) else None
        _release_after_failure(held, ctx)
        if cause is not None:
            raise cause from error
        raise
    return held


def _let_go(guard: Guard) -> ConsistencyError | None:
    """What the watchdog says where it has let go of all: it ends what is being made quiet, which then fails in ways of its own."""
    try:
        guard.confirm()
    except ConsistencyError as error:
        return error
    return None


def _check_place(guard: Guard, brackets: Sequence[Bracket], ctx: Context) -> None:
    if not guard.apart:
        where = "the watchdog cannot leave the control group of this process, and would be ended with it"
        if any(bracket.stops for bracket in brackets):
            raise ConsistencyError(where, remedy="run as a systemd service or outside of the container, or use a hook")
        ctx.progress.warn(where)
    if not guard.locked:
        ctx.progress.warn(
            "the watchdog may be swapped out: locking it in memory is not allowed here; run as root, or raise LimitMEMLOCK= in the unit"
        )
    if not guard.spared:
        ctx.progress.warn(
            "the watchdog may be ended when memory runs out: preventing that is not allowed here; run as root outside of a container, "
            "or set OOMScoreAdjust=-1000 in the unit"
        )


def _beat(guard: Guard, seconds: float) -> None:
    while not guard.closed.wait(seconds):
        guard.beat()


def _release_after_failure(held: Held, ctx: Context) -> None:
    """Let go; what goes wrong with that is told beside the failure that led here."""
    try:
        held.release()
    except ConsistencyError as error:
        ctx.progress.warn(f"{error} → {error.remedy}" if error.remedy else str(error))


def capture_quietly(
    brackets: Sequence[Bracket], create: Callable[[], _T], terms: Terms, require: Consistency, ctx: Context
) -> tuple[_T, Consistency, tuple[Quieted, ...]]:
    """Make quiet, create a capture that stays as it is by itself, and let go: the capture, what the brackets vouch for, and what was done.

    ConsistencyError as from `hold`, and where the time was over before `create` returned: then the capture is not one of a quiet resource,
    whatever it looks like.
    """
    with hold(brackets, terms, require, ctx) as held:
        made = create()
        level = held.confirm()
        held.release()
    return made, level, held.record
