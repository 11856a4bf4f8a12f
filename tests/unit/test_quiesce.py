"""The order of brackets, what is told and recorded, and what is refused; with real watchdogs, and brackets that only take notes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safehold.adapters.linux.downtime import ReadOnly, Unmount
from safehold.adapters.linux.freeze import Freeze
from safehold.adapters.linux.hook import Hook
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError, StillHeldError, UsageError
from safehold.ports.bracket import Begin, Bracket, Undo
from safehold.quiesce.forbidden import Needed, check_allowed
from safehold.quiesce.guard import Guard, Terms, arm
from safehold.quiesce.holding import capture_quietly, hold
from safehold.quiesce.specs import BracketKind, parse_bracket
from tests.mounts import mounted, thaw

TERMS = Terms(60, 60)


@dataclass
class Warnings:
    """A Progress that keeps what it is warned of."""

    told: list[str] = field(default_factory=list)

    def start(self, task: str, total: int | None) -> None: ...
    def advance(self, amount: int) -> None: ...
    def note(self, text: str) -> None: ...
    def done(self) -> None: ...

    def warn(self, text: str) -> None:
        self.told.append(text)


class Noted:
    """A bracket that writes down what happens, and lets go by a file that the watchdog's undo leaves."""

    expected = 0.5
    stops: frozenset[str] = frozenset()

    def __init__(self, name: str, notes: list[str], place: Path, level: Consistency, fails: str = "") -> None:
        self.spec, self._notes, self.promises, self._fails = f"note:{name}", notes, level, fails
        self.reaches = level
        self.undone = place / name

    def prepare(self) -> None:
        self._note("prepare")

    def undo(self) -> Undo:
        argv = ["/bin/sh", "-c", f'echo undone >> "{self.undone}"']
        return {"kind": "run", "argv": argv, "environment": {}, "directory": "/", "seconds": 10}

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        begin()
        self._note("hold")
        try:
            yield self.promises
        finally:
            self._note("release")

    def _note(self, what: str) -> None:
        self._notes.append(f"{what} {self.spec[5:]}")
        if self._fails == what:
            raise (StillHeldError if what == "release" else ConsistencyError)(f"cannot {what}")


def three(notes: list[str], place: Path, **fails: str) -> list[Noted]:
    levels = {"a": Consistency.FILESYSTEM, "b": Consistency.APPLICATION, "c": Consistency.NONE}
    return [Noted(name, notes, place, level, fails.get(name, "")) for name, level in levels.items()]


def test_in_order_and_back(tmp_path: Path) -> None:
    notes: list[str] = []
    made, level, record = capture_quietly(
        three(notes, tmp_path), lambda: notes.append("create"), TERMS, Consistency.FILESYSTEM, Context()
    )
    assert made is None
    assert notes == [
        *("prepare a", "prepare b", "prepare c"),
        *("hold a", "hold b", "hold c", "create", "release c", "release b", "release a"),
    ]
    assert level is Consistency.APPLICATION, "the most that one of them vouches for"
    assert [(q.bracket, q.achieved, q.expected) for q in record][:2] == [
        ("note:a", "filesystem", 0.5),
        ("note:b", "application", 0.5),
    ]
    a, b, c = record
    times = [*a.entering, *b.entering, *c.entering, *c.leaving, *b.leaving, *a.leaving]
    assert times == sorted(times)
    assert times[0] > 0
    assert list(tmp_path.iterdir()) == [], "the watchdog had nothing to do"


def test_a_step_that_fails(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(ConsistencyError, match="cannot hold"):
        capture_quietly(three(notes, tmp_path, b="hold"), lambda: None, TERMS, Consistency.FILESYSTEM, Context())
    assert notes[3:] == ["hold a", "hold b", "release a"]
    assert list(tmp_path.iterdir()) == []


def test_less_was_asked_for(tmp_path: Path) -> None:
    notes: list[str] = []
    progress = Warnings()
    made, level, record = capture_quietly(
        three(notes, tmp_path, b="hold"), lambda: "made", TERMS, Consistency.CRASH, Context(progress=progress)
    )
    assert (made, level, record) == ("made", Consistency.NONE, ())
    assert progress.told[-1] == "cannot hold; going on without brackets"


def test_what_the_watchdog_could_not_have_is_told_with_what_to_do(tmp_path: Path) -> None:
    def poor(undos: Sequence[Undo], terms: Terms) -> Guard:
        guard = arm(undos, terms)
        guard.locked = guard.spared = False
        return guard

    progress = Warnings()
    with hold(three([], tmp_path), TERMS, Consistency.FILESYSTEM, Context(progress=progress), arm=poor):
        pass
    swapped, ended = progress.told
    assert "LimitMEMLOCK" in swapped
    assert "OOMScoreAdjust=-1000" in ended


def test_what_the_owner_cannot_let_go_of_the_watchdog_does(tmp_path: Path) -> None:
    brackets = three([], tmp_path, b="release")
    with pytest.raises(StillHeldError, match="cannot release"):
        capture_quietly(brackets, lambda: None, TERMS, Consistency.FILESYSTEM, Context())
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "that one, and only that"


def test_other_failures_go_through_and_all_is_let_go_of(tmp_path: Path) -> None:
    notes: list[str] = []

    def fail() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        capture_quietly(three(notes, tmp_path), fail, TERMS, Consistency.FILESYSTEM, Context())
    assert notes[-3:] == ["release c", "release b", "release a"]


def test_a_capture_that_comes_too_late_is_none(tmp_path: Path) -> None:
    brackets = three([], tmp_path)

    def create() -> str:
        # What the watchdog does at the deadline is the clock here.
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        return "looks fine"

    with pytest.raises(ConsistencyError, match="let go after"):
        capture_quietly(brackets, create, Terms(2, 2), Consistency.FILESYSTEM, Context())
    progress = Warnings()
    for path in tmp_path.iterdir():
        path.unlink()
    _, level, _ = capture_quietly(brackets, create, Terms(2, 2), Consistency.CRASH, Context(progress=progress))
    assert level is Consistency.NONE
    assert "vouch for nothing" in progress.told[-1]


@pytest.mark.parametrize("kind", [Freeze, ReadOnly, Unmount])
def test_what_the_watchdog_let_go_of_is_no_failure_where_less_was_asked_for(
    tmp_path: Path, kind: Callable[[str], Bracket]
) -> None:
    """It is told once, and is on record as something that did not hold."""
    with mounted(tmp_path / "disk", "ext4") as where:
        number = where.stat().st_dev
        (where / "there").touch()

        def create() -> str:
            # Until the watchdog lets go at the deadline.
            while not (where / "there").exists() or os.statvfs(where).f_flag & os.ST_RDONLY:
                time.sleep(0.01)
            (where / "file").write_text("waits")
            return "made"

        progress = Warnings()
        made, level, record = capture_quietly(
            [kind(str(where))], create, Terms(2, 2), Consistency.CRASH, Context(progress=progress)
        )
        assert (made, level) == ("made", Consistency.NONE)
        assert "vouch for nothing" in progress.told[-1]
        assert [one.achieved for one in record] == ["none"]
        assert record[0].pause > 0
        assert where.stat().st_dev == number
        assert not os.statvfs(where).f_flag & os.ST_RDONLY


def test_a_watchdog_that_was_killed_is_no_failure_where_less_was_asked_for(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ext4") as where:
        guards: list[Guard] = []

        def kept(undos: Sequence[Undo], terms: Terms) -> Guard:
            guards.append(arm(undos, terms))
            return guards[0]

        progress = Warnings()
        with hold([Freeze(str(where))], TERMS, Consistency.CRASH, Context(progress=progress), arm=kept) as held:
            os.kill(guards[0].process, signal.SIGKILL)
            assert held.confirm() is Consistency.NONE
        assert "does not answer" in progress.told[-1]
        assert not thaw(where), "its owner has let go"


def test_a_release_that_fails_is_told_also_where_the_watchdog_had_let_go_before(tmp_path: Path) -> None:
    brackets = three([], tmp_path, b="release")

    def create() -> None:
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)

    with pytest.raises(StillHeldError, match="cannot release"):
        capture_quietly(brackets, create, Terms(2, 2), Consistency.CRASH, Context())


class _Ended(Noted):
    """Becomes quiet for ever, until the watchdog ends it."""

    @contextlib.contextmanager
    def hold(self, deadline: float, begin: Begin) -> Iterator[Consistency]:
        begin()
        while not self.undone.exists():
            time.sleep(0.01)
        raise ConsistencyError("ended with code -9")
        yield Consistency.NONE


def test_what_the_watchdog_ended_is_told_to_be_so(tmp_path: Path) -> None:
    brackets = [_Ended("a", [], tmp_path, Consistency.FILESYSTEM, "")]
    with pytest.raises(ConsistencyError, match="the watchdog let go after"):
        capture_quietly(brackets, lambda: None, Terms(1, 1), Consistency.FILESYSTEM, Context())


def test_beats_make_it_last_longer_than_the_silence(tmp_path: Path) -> None:
    with hold(three([], tmp_path), Terms(2, 60), Consistency.FILESYSTEM, Context()) as held:
        time.sleep(5)
        assert held.confirm() is Consistency.APPLICATION


def test_a_freeze_around_a_capture(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "xfs") as where:
        before = where.stat()
        frozen: list[bool] = []

        def create() -> None:
            with pytest.raises(ConsistencyError, match="frozen already"):
                capture_quietly([Freeze(str(where))], lambda: None, TERMS, Consistency.FILESYSTEM, Context())
            with subprocess.Popen(["sh", "-c", f'echo > "{where}/file"']) as writer:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    writer.wait(0.3)
                frozen.append(writer.poll() is None)
                # Let the test end: the thaw that follows finds that somebody else was there.
                thaw(where)

        with pytest.raises(ConsistencyError, match="thawed by somebody else"):
            capture_quietly([Freeze(str(where))], create, TERMS, Consistency.FILESYSTEM, Context())
        assert frozen == [True], "another freeze that failed did not end this one"
        assert before.st_dev == where.stat().st_dev


def test_a_freeze_that_the_kernel_does_not_have() -> None:
    with pytest.raises(ConsistencyError, match="cannot be frozen"):
        capture_quietly([Freeze("/proc")], lambda: None, TERMS, Consistency.FILESYSTEM, Context())


def test_a_log_on_what_is_frozen_keeps_nothing_waiting(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ext4") as where:
        terms = Terms(2, 2, where / "log")

        def create() -> None:
            (where / "file").write_text("waits until the watchdog lets go")

        with pytest.raises(ConsistencyError, match="let go after"):
            capture_quietly([Freeze(str(where))], create, terms, Consistency.FILESYSTEM, Context())


def test_a_hook_that_does_not_end_is_ended_before_the_other_half_runs(tmp_path: Path) -> None:
    hook, log = tmp_path / "hook", tmp_path / "log"
    hook.write_text(f'#!/bin/sh\necho "$1" >> "{log}"\n[ "$1" = thaw ] || {{ sleep 1000; echo late >> "{log}"; }}\n')
    hook.chmod(0o755)
    bracket = Hook(str(hook), os.environ, "run", 2)
    with pytest.raises(ConsistencyError, match="did not finish freeze within"):
        capture_quietly([bracket], lambda: None, TERMS, Consistency.APPLICATION, Context())
    assert log.read_text().split() == ["freeze", "thaw"]


def test_a_watchdog_that_could_not_undo_is_not_armed(tmp_path: Path) -> None:
    for undo in (
        {"kind": "thaw", "path": str(tmp_path / "none"), "device": "0:0"},
        {"kind": "thaw", "path": str(tmp_path), "device": "0:0"},
        {"kind": "run", "argv": ["no-path"], "environment": {}, "directory": "/", "seconds": 1},
        {"kind": "unknown"},
    ):
        with pytest.raises(ConsistencyError, match="not ready"):
            arm([undo], TERMS)
    with pytest.raises(ConsistencyError, match="not ready"):
        arm([], Terms(1, 1, tmp_path / "no" / "log"))


def test_the_watchdog_is_out_of_reach(tmp_path: Path) -> None:
    guard = arm([], TERMS)
    try:
        status = Path(f"/proc/{guard.process}/status").read_text()
        locked = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmLck"))
        assert locked > 1000
        assert guard.locked
        assert guard.apart
        # Where root may not do that, it is told.
        assert guard.spared == (Path(f"/proc/{guard.process}/oom_score_adj").read_text().strip() == "-1000")
        assert os.getsid(guard.process) != os.getsid(0)
        assert {line.split(":", 2)[2] for line in Path(f"/proc/{guard.process}/cgroup").read_text().split()} == {"/"}
    finally:
        guard.close()


def test_the_watchdog_needs_nothing_of_ours() -> None:
    code = "import sys, safehold.watchdog.__main__; print('\\n'.join(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("safehold")}
    assert "safehold.watchdog.vigil" in ours
    assert all(name == "safehold" or name.startswith("safehold.watchdog") for name in ours)
    outside = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"safehold", "__main__"}
    assert not {name for name in outside if not name.startswith("_")}


def test_words() -> None:
    spec = parse_bracket("hook:./a:b c")
    assert (spec.kind, spec.argument, str(spec)) == (BracketKind.HOOK, "./a:b c", "hook:./a:b c")
    for text in ("fsfreeze", "fsfreeze:", "snapshot:/x", ":x", ""):
        with pytest.raises(UsageError):
            parse_bracket(text)


def test_what_the_backup_needs_is_not_stopped(tmp_path: Path) -> None:
    bracket = Freeze(str(tmp_path))
    (number,) = bracket.stops
    check_allowed([bracket], [Needed("the vault", "/elsewhere", frozenset({"9999:1"}))])
    with pytest.raises(UsageError, match="the vault"):
        check_allowed([bracket], [Needed("the vault", "/here", frozenset({"9999:1", number}))])
