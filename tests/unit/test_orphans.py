"""What is known to be held from the watchdog's log, where nobody is left to let go of it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from safehold.adapters.linux.freeze import Freeze
from safehold.compose.paths import Paths
from safehold.compose.quiet import frozen_problems, watchdog_log
from safehold.model.consistency import Consistency
from safehold.model.context import Context
from safehold.model.errors import ConsistencyError
from safehold.quiesce.guard import Terms
from safehold.quiesce.holding import capture_quietly
from safehold.quiesce.orphans import may_be_held
from tests.mounts import mounted, thaw

NOBODY = 2**22 + 1
"""The number of no process."""


def note(log: Path, process: int, at: float = 0, **what: Any) -> None:
    with log.open("a") as out:
        out.write(json.dumps({"time": at or time.time(), "pid": process, **what}) + "\n")


def report(log: Path, process: int, at: float = 0, **states: str) -> None:
    steps = [{"what": f"thaw /{name}", "state": state, "tries": 1, "error": ""} for name, state in states.items()]
    note(log, process, at, by="death", after=1.0, steps=steps)


def test_what_a_watchdog_gave_up_on_is_held_until_it_is_let_go_of(tmp_path: Path) -> None:
    log = tmp_path / "log"
    note(log, NOBODY, armed=["thaw /srv", "thaw /home"], owner=NOBODY)
    assert may_be_held(log) == ["thaw /srv", "thaw /home"]
    report(log, NOBODY, srv="held", home="released")
    assert may_be_held(log) == ["thaw /srv"]
    report(log, NOBODY + 1, srv="failed", home="left")
    assert may_be_held(log) == ["thaw /srv"], "somebody who never held it did not let go of it"
    report(log, NOBODY + 2, srv="held")
    assert may_be_held(log) == ["thaw /srv"], "it is one thing"
    report(log, NOBODY + 3, srv="released")
    assert may_be_held(log) == []


def test_a_reboot_lets_go_of_all(tmp_path: Path) -> None:
    report(tmp_path / "log", NOBODY, at=1000.0, srv="held")
    assert may_be_held(tmp_path / "log") == []


def test_what_is_plainly_mounted_again_is_no_problem(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "config", tmp_path / "state", tmp_path / "cache", tmp_path / "run")
    with mounted(tmp_path / "disk", "ext4") as where:
        source = subprocess.run(["findmnt", "-no", "SOURCE", where], capture_output=True, text=True).stdout.strip()
        what = [f"mount {source} on {where}", f"make {where} writable", f"thaw {where}"]
        note(watchdog_log(paths), NOBODY, steps=[{"what": one, "state": "held"} for one in what])
        (problem,) = frozen_problems(paths)
        assert problem.endswith(f"thaw {where}")
        subprocess.run(["mount", "-o", "remount,ro", where], check=True)
        assert [one.rpartition(": ")[2] for one in frozen_problems(paths)] == what[1:]
    assert [one.rpartition(": ")[2] for one in frozen_problems(paths)] == what


def test_a_freeze_that_found_another_lets_go_of_nothing(tmp_path: Path) -> None:
    """As told by a real watchdog."""
    log = tmp_path / "log"
    with mounted(tmp_path / "disk", "ext4") as where:
        report(log, NOBODY, **{str(where)[1:]: "held"})
        subprocess.run(["fsfreeze", "--freeze", where], check=True)
        with pytest.raises(ConsistencyError, match="frozen already"):
            capture_quietly([Freeze(str(where))], lambda: None, Terms(30, 30, log), Consistency.FILESYSTEM, Context())
        for _ in range(200):
            if len(log.read_text().splitlines()) == 3:
                break
            time.sleep(0.05)
        assert may_be_held(log) == [f"thaw {where}"]
        thaw(where)
        capture_quietly([Freeze(str(where))], lambda: None, Terms(30, 30, log), Consistency.FILESYSTEM, Context())
        for _ in range(200):
            if not may_be_held(log):
                return
            time.sleep(0.05)
        raise AssertionError("it was let go of since")
