"""What a status tells of a machine whose vault is away."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.hosts import Host


@pytest.mark.parametrize(
    ("away", "says", "code"),
    [
        ({"SAFEHOLD_VAULT": "/nowhere/vault"}, "no vault here", 2),
        ({"SAFEHOLD_IDENTITY": "", "SAFEHOLD_PASSPHRASE": "wrong"}, "wrong passphrase", 6),
        ({"SAFEHOLD_IDENTITY": ""}, "no passphrase", 6),
    ],
    ids=["away", "wrong", "nothing"],
)
def test_status_tells_what_is_here_also_where_the_vault_cannot_be_opened(
    host: Host, away: dict[str, str], says: str, code: int
) -> None:
    host.program.run("volume", "create", "data", "--size", "16M")
    host.program.run("volume", "create", "other", "--size", "16M")
    host.program.run("volume", "stop")
    record = host.home / "state" / "volumes" / "data" / "vol.json"
    record.write_bytes(record.read_bytes()[:-20])
    host.program.run("volume", "list")
    (host.home / "run" / "switch").write_text('{"old": "other", "new": "data", "mount": "/srv", "options": ""}')
    armed = {"pid": 2**22 + 1, "time": time.time(), "owner": 2**22 + 2, "armed": ["fsfreeze --unfreeze /srv"]}
    (host.home / "state" / "watchdog.log").write_text(json.dumps(armed) + "\n")
    done = host.program.run("status", code=code, **away)
    lines = done.stdout.splitlines()
    assert [line.startswith("PROBLEM  ") for line in lines] == [True] * 3
    assert "/srv may be away → safehold volume switch other --to data" in lines[0]
    assert "volume data cannot be opened" in lines[1]
    assert "fsfreeze --unfreeze /srv" in lines[2]
    assert says in done.stderr
    assert "→" in done.stderr
    told = host.program.json("status", code=code, **away)
    assert [one["what"] in line for one, line in zip(told["problems"], lines, strict=True)] == [True] * 3
    assert says in told["error"]["what"]
    assert told["error"]["code"] == code
    assert host.program.run("status", "other", code=code, **away).stdout.splitlines() == [lines[0], lines[2]]
