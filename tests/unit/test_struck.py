"""The numbers of faults that tests caused stand at the end of a run, also where other processes ran the tests; none is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
def test_one(struck):
    struck("crash points", 3)

def test_two(struck):
    struck("crash points", 4)
    struck("store faults", 5)

def test_nothing(struck):
    struck("power losses", 0)
"""


@pytest.mark.parametrize("processes", [0, 1])
def test_the_numbers_are_printed(tmp_path: Path, processes: int) -> None:
    (tmp_path / "conftest.py").write_text("from tests.struck import pytest_terminal_summary, struck\n")
    (tmp_path / "test_faults.py").write_text(TESTS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n",
        str(processes),
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    said = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 1, said.stdout + said.stderr
    lines = [" ".join(line.split()) for line in said.stdout.splitlines()]
    assert "7 crash points in 2 tests" in lines
    assert "5 store faults in 1 tests" in lines
    assert any("no power losses: this test proved nothing" in line for line in lines)
    assert "1 failed, 2 passed" in said.stdout
