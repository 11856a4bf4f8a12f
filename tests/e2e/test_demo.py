"""The README's first command, as the user and as root."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "scripts/demo"
# A namespace in which root is somebody else: nothing is mounted then, and no device made.
WAYS = {"root": [], "user": ["unshare", "--user", "--map-user=65534"]}


@pytest.mark.parametrize("way", WAYS)
def test_the_demo_tells_its_story(way: str, tmp_path: Path) -> None:
    """Also where its output goes to a file in a directory that is closed to it by then."""
    closed = tmp_path / "closed"
    closed.mkdir()
    with (closed / "story").open("w") as story:
        closed.chmod(0)
        done = subprocess.run(
            [*WAYS[way], DEMO, Path(sys.executable).parent],
            stdout=story,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
    closed.chmod(0o700)
    assert done.returncode == 0, done.stderr
    told = (closed / "story").read_text()
    for line in (
        "$ safehold key check --kit kit.txt\nopens vault",
        "the newest generation is equal, bit for bit",
        "the older generation is equal, bit for bit",
        "e2fsck finds the file system clean",
        "== 11. " + ("Gone by mistake" if way == "root" else "Overwritten by mistake"),
    ):
        assert line in told
    assert "no second copy" not in done.stderr
    if way == "root":
        attach = re.search(r"^\$ safehold volume attach live --mount (/\S+)\n(.*)", told, re.MULTILINE)
        assert attach is not None
        assert attach[2].endswith(f" on {attach[1]}")
    assert told.rstrip().splitlines()[-1].split()[2] == "live"
