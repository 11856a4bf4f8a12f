"""The installed program left to itself for a month in a guest whose clock goes from day to day; some runs are killed in the middle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from safehold.testing.guest import Finished, Guest, start_guest

SAFEHOLD = Path(sys.executable).parent / "safehold"
FIRST = datetime(2027, 3, 4, 2, 31, tzinfo=UTC)
"""A Thursday: the first seven days lie in two weeks."""

DAILY, WEEKLY, LAST = 3, 3, 2
DAY_BYTES = (4 << 20) + 150_000
"""New data of each day: most of the disk, and a page."""

FAILING_DAY = 3
"""The disk is not there on that day."""

CONFIGURATION = f"""\
version: 1
vaults:
  main: {{place: /srv/vault, identity: /srv/identity.pem}}
resources:
  www: {{paths: [/srv/www], plan: nightly}}
  disk: {{paths: [/srv/disk.img], plan: nightly}}
plans:
  nightly:
    at: "02:30"
    keep: {{last: {LAST}, daily: {DAILY}, weekly: {WEEKLY}}}
    verify: {{older_than: 5d, read_budget: 12MB}}
    prune: 2d
    on_failure: {{command: /srv/tell}}
"""

PREPARE = """
mkfs.ext4 -q /dev/vda
mount /dev/vda /srv
mkdir -p /srv/www/deep /srv/states
cp /share/identity.pem /share/public.pem /srv
printf '#!/bin/sh\\ncat >> /srv/told\\n' > /srv/tell
chmod 700 /srv/tell
echo sesame > /srv/passphrase
chmod 600 /srv/passphrase /srv/identity.pem
head -c 5242880 /dev/urandom > /srv/disk.img
export SAFEHOLD_PASSPHRASE_FILE=/srv/passphrase
unset SAFEHOLD_IDENTITY
safehold vault init /srv/vault --kit-file /srv/kit.txt
safehold key add --recipient /srv/public.pem
safehold config init
cp /share/safehold.yaml /srv/home/config/safehold.yaml
unset SAFEHOLD_PASSPHRASE_FILE
safehold config check
"""

CHANGE = """
cd /srv
head -c 4194304 /dev/urandom | dd of=disk.img bs=1048576 seek=$((DAY % 2)) iflag=fullblock conv=notrunc status=none
head -c 150000 /dev/urandom > www/deep/page$((DAY % 4))
echo DAY > www/added-DAY
rm -f www/added-$((DAY - 2))
mkdir states/DAY
cp -a www disk.img states/DAY
"""


@dataclass
class Month:
    """A guest that is left to itself; `history` has the time of each point ever seen, by resource and id."""

    guest: Guest
    history: dict[str, dict[str, float]] = field(default_factory=dict)
    stored: int = 0

    def run(self, script: str, *, code: int | None = 0) -> Finished:
        head = "export PYTHONFAULTHANDLER=1 SAFEHOLD_HOME=/srv/home SAFEHOLD_IDENTITY=/srv/identity.pem TZ=UTC\n"
        done = self.guest.run(f'{head}safehold() {{ "{SAFEHOLD}" "$@"; }}\n{script}', code=code, seconds=300)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, words: str) -> Any:
        return json.loads(self.run(f"safehold {words} --json").stdout)

    def tick(self, code: int = 0) -> float:
        """What the timer starts; the seconds that it took by the guest's clock."""
        script = (
            "before=$EPOCHREALTIME; safehold service run >&2 || code=$?; echo $before $EPOCHREALTIME; exit ${code:-0}"
        )
        before, after = self.run(script, code=code).stdout.split()
        return float(after) - float(before)

    def killed_tick(self, after: float) -> bool:
        """The same, killed after so many seconds; False where it had ended before."""
        # The program itself, without a shell between: the kill is for nobody else.
        script = f'"{SAFEHOLD}" service run & process=$!; sleep {after:.2f}; kill -9 $process || true; wait $process'
        return self.run(script, code=None).code == 137

    def clock(self, moment: datetime) -> None:
        self.run(f"date -u -s @{moment.timestamp():.0f}")

    def look(self) -> dict[str, list[str]]:
        """The ids of the points that are there, oldest first, by resource."""
        there: dict[str, list[str]] = {}
        for point in self.json("points")["points"]:
            name, known = point["members"][0]["name"], point["id"]
            there.setdefault(name, []).append(known)
            if known not in self.history.setdefault(name, {}):
                self.history[name][known] = point["time"]
                self.stored += point["stored"]
        return there


@pytest.fixture
def month(tmp_path: Path) -> Iterator[Month]:
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, 2 << 30)
    with start_guest(tmp_path / "guest", [disk]) as guest:
        private, public = guest.share / "identity.pem", guest.share / "public.pem"
        subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", private], check=True, capture_output=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
        (guest.share / "safehold.yaml").write_text(CONFIGURATION)
        month = Month(guest)
        month.clock(FIRST - timedelta(hours=1))
        month.run(PREPARE)
        yield month


def kept_by_the_rules(times: dict[str, float]) -> set[str]:
    """The same rules once more, in another way: counted from each point, not from the newest on."""

    def kept(point: str, period: str, most: int) -> bool:
        mine = datetime.fromtimestamp(times[point], UTC).strftime(period)
        since = [datetime.fromtimestamp(time, UTC).strftime(period) for time in times.values() if time > times[point]]
        return mine not in since and len(set(since)) < most

    return {
        point
        for point in times
        if sum(time > times[point] for time in times.values()) < LAST
        or kept(point, "%F", DAILY)
        or kept(point, "%G-%V", WEEKLY)
    }


def day_of(time: float) -> int:
    return (datetime.fromtimestamp(time, UTC).date() - FIRST.date()).days


@pytest.mark.parametrize("days", [7, pytest.param(31, marks=pytest.mark.soak)])
def test_a_machine_left_to_itself(month: Month, days: int) -> None:
    rng = random.Random(days)
    took, tried, killed = 0.0, 0, 0
    there: dict[str, list[str]] = {}
    for day in range(days):
        morning = FIRST + timedelta(days=day)
        month.clock(morning)
        month.run(CHANGE.replace("DAY", str(day)))
        if day == FAILING_DAY:
            month.run("mv /srv/disk.img /srv/away")
            month.tick(code=2)
            month.run("mv /srv/away /srv/disk.img; grep -q 'no such file' /srv/told; mv /srv/told /srv/told-before")
        elif day % 3 == 2 and day != days - 1:
            tried += 1
            killed += month.killed_tick(took * rng.uniform(0.15, 0.95))
            month.clock(morning + timedelta(minutes=5))
            month.tick()
        else:
            took = month.tick()
        there = month.look()
    assert 2 * killed >= tried > 0

    month.run("test ! -e /srv/told")
    assert all(one["state"] == "ok" for one in month.json("status --max-age 26h")["resources"].values())
    for name in ("www", "disk"):
        assert set(there[name]) == kept_by_the_rules(month.history[name])
        assert len(month.history[name]) > len(there[name]) >= DAILY
    month.run("safehold verify --data; safehold verify --stored")

    for name, ids in there.items():
        for point in dict.fromkeys([ids[0], ids[len(ids) // 2], ids[-1]]):
            state = f"/srv/states/{day_of(month.history[name][point])}"
            if name == "disk":
                month.run(
                    f"safehold restore disk@{point} --to /srv/out.img; cmp /srv/out.img {state}/disk.img; rm /srv/out.img"
                )
            else:
                month.run(
                    f"safehold restore www@{point}:/srv/www --to /srv/out; diff -r /srv/out {state}/www; rm -r /srv/out"
                )

    month.run("safehold vault prune")
    packs = int(month.run("du -sb /srv/vault/packs").stdout.split()[0])
    # What each point that is left needs for itself, what they share, and a part for packs of which only some is needed.
    needed = (1 << 20) + len(there["disk"]) * DAY_BYTES * 1.25
    assert packs <= needed < month.stored, (packs, needed, month.stored)
