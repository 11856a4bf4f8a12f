"""Unattended runs with the installed program."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from safehold.testing.program import Program
from tests.e2e.hosts import Host, run


@pytest.fixture
def place(program: Program, vault: Path, tmp_path: Path) -> Path:
    """A configuration with a tree, a disk, and a thing that is not there."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/index.html").write_text("<html>")
    (tmp_path / "disk.img").write_bytes(b"x" * 100_000)
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "pass").chmod(0o600)
    (tmp_path / "tell").write_text(f"#!/bin/sh\ncat >> {tmp_path}/told\n")
    (tmp_path / "tell").chmod(0o700)
    path = tmp_path / "safehold.yaml"
    path.write_text(f"""\
version: 1
vaults:
  main: {{place: {vault}, passphrase_file: {tmp_path}/pass}}
resources:
  www: {{paths: [{tmp_path}/www, {tmp_path}/kit.txt], plan: often}}
  disk: {{paths: [{tmp_path}/disk.img], plan: often}}
  gone: {{paths: [{tmp_path}/nothing], plan: often}}
plans:
  often:
    every: 6h
    keep: {{last: 1}}
    verify: {{older_than: 1d, read_budget: 1GB}}
    prune: 1d
    on_failure: {{command: {tmp_path}/tell}}
metrics: {tmp_path}/safehold.prom
""")
    return path


def test_what_is_due_is_done(program: Program, place: Path, tmp_path: Path) -> None:
    program.passphrase = False
    checked = program.run("config", "check", "--config", place, code=1).stdout
    assert "www: " in checked
    assert f"lacking: resources.gone.paths: {tmp_path}/nothing is not there" in checked
    first = program.json("service", "run", "--config", place, code=2)["steps"]
    assert [(s["step"], s["on"], s["code"]) for s in first] == [
        ("backup", "www", 0),
        ("backup", "disk", 0),
        ("backup", "gone", 2),
        ("verify", "main", 0),
        ("expire", "www", 0),
        ("expire", "disk", 0),
        ("expire", "gone", 0),
        ("prune", "main", 0),
    ]
    told = [json.loads(line) for line in (tmp_path / "told").read_text().replace("}{", "}\n{").splitlines()]
    assert {(t["step"], t["on"]) for t in told} == {("backup", "gone")}
    assert "no such file" in told[0]["what"]
    figures = (tmp_path / "safehold.prom").read_text()
    assert 'safehold_last_run_code{step="backup",on="gone",vault="main"} 2' in figures
    assert 'safehold_last_success_timestamp_seconds{step="backup",on="www",vault="main"} ' in figures
    assert 'step="backup",on="gone"' not in "\n".join(line for line in figures.splitlines() if "last_success" in line)
    # Nothing is due again, and the metrics stay.
    assert program.json("service", "run", "--config", place)["steps"] == []
    assert program.run("service", "run", "--config", place).stdout == "nothing is due\n"
    assert (tmp_path / "safehold.prom").read_text() == figures
    (tmp_path / "disk.img").write_bytes(b"y" * 100_000)
    ran = program.run("service", "run", "--config", place, "--all", code=2)
    second = ran.stdout
    assert "no such file" not in ran.stderr, "told once"
    assert "ok      backup disk" in second
    assert "FAILED  backup gone" in second
    assert second.count("no such file") == 1
    assert "\n  → " in second[second.index("FAILED  backup gone") :]
    # What the file no longer asks for leaves the metrics.
    place.write_text("".join(line for line in place.read_text().splitlines(True) if not line.startswith("  gone:")))
    program.run("service", "run", "--config", place, "--all")
    assert 'on="gone"' not in (tmp_path / "safehold.prom").read_text()
    assert 'on="disk"' in (tmp_path / "safehold.prom").read_text()
    program.passphrase = True
    assert sorted(p["members"][0]["name"] for p in program.json("points")["points"]) == ["disk", "www"]
    program.run("restore", "disk@latest", "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"y" * 100_000


def test_status_knows_what_should_be_there(program: Program, place: Path, tmp_path: Path) -> None:
    """What never succeeded, what failed last, and how: by the configuration and what the runs left."""
    before = program.json("status", "--config", place)["resources"]
    assert {name: one["state"] for name, one in before.items()} == dict.fromkeys(("www", "disk", "gone"), "missing")
    program.run("status", "--config", place, "--max-age", "26h", code=8)
    program.run("service", "run", "--config", place, code=2)
    (tmp_path / "disk.img").unlink()
    program.run("service", "run", "--config", place, "--all", code=2)
    program.home.joinpath("config").mkdir(exist_ok=True)
    shutil.copy(place, program.home / "config/safehold.yaml")
    done = program.run("status", "--max-age", "26h", code=8)
    lines = done.stdout.splitlines()
    assert [line.split(" failed on ")[0] for line in lines[:2]] == ["PROBLEM  backup disk", "PROBLEM  backup gone"]
    assert "no such file" in lines[0]
    assert [line.split()[:2] for line in lines[4:7]] == [["missing", "gone"], ["failed", "disk"], ["ok", "www"]]
    assert lines[7].startswith("unattended runs: the last one began on 20")
    assert "; next is backup " in lines[7]
    unattended = program.json("status", code=1)["unattended"]
    assert unattended["due"]["time"] == pytest.approx(unattended["last"] + 6 * 3600)
    # What is wrong with one resource says nothing of another, and what can be done about it stands beside it.
    program.run("status", "www")
    assert program.json("status", "www")["problems"] == []
    (problem,) = program.json("status", "gone", code=1)["problems"]
    assert problem["resources"] == ["gone"]
    assert " → " + problem["remedy"] in lines[1]
    assert "1 of 3 resources" in done.stderr
    assert "gone" in done.stderr
    assert "no such file" in program.json("status", "disk", "--max-age", "26h", code=1)["resources"]["disk"]["failure"]
    (program.home / "config/safehold.yaml").write_text("version: 7")
    assert "PROBLEM  unattended runs: version" in program.run("status", code=1).stdout
    (program.home / "config/safehold.yaml").unlink()
    assert set(program.json("status")["resources"]) == {"www", "disk"}
    assert program.json("status")["unattended"] is None


def test_status_names_the_vault_of_a_problem(program: Program, place: Path, tmp_path: Path) -> None:
    program.run("service", "run", "--config", place, code=2)
    program.run("vault", "init", tmp_path / "other", "--kit-file", tmp_path / "other.txt", SAFEHOLD_PASSPHRASE="other")
    other = ("--vault", tmp_path / "other", "--kit", tmp_path / "other.txt")
    program.environment.pop("SAFEHOLD_IDENTITY")
    done = program.run("status", *other, "--config", place, code=1)
    main = program.json("status", "--config", place, "--kit", tmp_path / "kit.txt", code=1)["vault"]
    assert done.stdout.startswith(f"PROBLEM  vault {main}: backup gone failed on ")
    (problem,) = program.json("status", *other, "--config", place, code=1)["problems"]
    assert (problem["vault"], problem["what"].partition(" failed")[0]) == (main, "backup gone")


def test_status_says_when_nobody_runs_what_is_due(program: Program, place: Path) -> None:
    said = program.run("status", "--config", place).stdout
    assert "unattended runs: there was none yet; backup www is due → is the timer on?" in said


def test_two_at_once(program: Program, place: Path) -> None:
    runs = [program.start("service", "run", "--config", place, "--all") for _ in range(3)]
    outputs = [run.communicate() for run in runs]
    assert sum("another run is at work" in err for _, err in outputs) >= 1
    assert any("ok      backup disk" in out for out, _ in outputs)
    program.run("verify")


def test_beginning(program: Program, tmp_path: Path, place: Path) -> None:
    program.run("config", "init")
    written = program.home / "config/safehold.yaml"
    assert "version: 1" in written.read_text()
    assert "File exists" in program.run("config", "init", code=2).stderr
    # It is of this machine's vault, and how that is opened.
    assert f"ok: {written}" in program.run("config", "check").stdout
    elsewhere = Program(tmp_path / "elsewhere")
    for verb in (["config", "check"], ["service", "run"]):
        assert "safehold config init" in elsewhere.run(*verb, code=2).stderr
    elsewhere.run("config", "init")
    said = elsewhere.run("config", "check", code=1).stdout.splitlines()
    assert all(" → " in line for line in said if line.startswith("lacking: "))
    assert f"lacking: vaults.main.passphrase_file: {tmp_path}/elsewhere/config/passphrase is not there" in "\n".join(
        said
    )
    assert (
        said[-1]
        == f"not ready: this machine lacks {len(said) - 2} things that {tmp_path}/elsewhere/config/safehold.yaml names"
    )
    units = tmp_path / "units"
    said = program.run("service", "install-units", "--config", place, "--to", units).stdout
    assert "enable --now safehold.timer" in said
    text = (units / "safehold.service").read_text()
    assert f"service run --config {place}" in text
    assert "\nLimitNOFILE=65536\n" in (units / "safehold-volumes.service").read_text()
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", units / "safehold.service", units / "safehold.timer"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "safehold" not in done.stderr, done.stderr
    place.write_text("version: 3")
    assert "safehold.yaml:1" in program.run("service", "install-units", "--config", place, "--to", units, code=2).stderr


def test_live_volumes(passphrase_host: Host) -> None:
    """Two volumes sealed at one instant, inside a hook, by the schedule; the rules hold for the histories of both."""
    host = passphrase_host
    program, home = host.program, host.home
    program.run("volume", "create", "data", "--size", "4M")
    program.run("volume", "create", "log", "--size", "1M")
    program.run("vault", "init", home / "other", "--kit-file", home / "other.txt")
    program.run("volume", "create", "elsewhere", "--size", "1M", "--vault", home / "other")
    hook = home / "hook"
    hook.write_text(f"#!/bin/sh\necho $1 >> {home}/held\necho consistency=application\n")
    hook.chmod(0o700)
    (home / "pass").write_text("correct horse\n")
    (home / "pass").chmod(0o600)
    place = home / "safehold.yaml"
    place.write_text(f"""\
version: 1
vaults:
  main: {{place: {home}/vault/, passphrase_file: {home}/pass}}
resources:
  db: {{volumes: [data, log], brackets: ['hook:{hook}'], require: application, tags: {{env: prod}}, plan: often}}
  stray: {{volumes: [elsewhere], plan: often}}
plans:
  often: {{every: 1h, keep: {{last: 2}}, verify: {{}}}}
""")
    assert "db: volume data, volume log into main" in program.run("config", "check", "--config", place).stdout
    for content in range(3):
        run("qemu-io", "-f", "raw", "-c", f"write -P {content + 1} 0 1M", host.nbd("data"))
        steps = program.json("service", "run", "--all", "--config", place, code=2)["steps"]
        told = {(one["step"], one["on"]): one for one in steps}
        assert told["backup", "db"]["code"] == 0
        assert told["backup", "db"]["figures"]["size_bytes"] == 5 << 20
        assert "snapshots of this volume go to" in told["backup", "stray"]["what"]
    assert told["expire", "db"]["figures"] == {"expired": 1, "points": 2}
    points = program.json("points")["points"]
    assert [[member["name"] for member in one["members"]] for one in points] == [["data", "log"]] * 2
    assert {member["consistency"] for one in points for member in one["members"]} == {"application"}
    assert (home / "held").read_text().split() == ["freeze", "thaw"] * 3
    program.run("restore", "data@latest", "--to", home / "back")
    run("qemu-io", "-f", "raw", "-r", "-c", "read -P 3 0 1M", home / "back")
    # One that was started from a timer would end with it.
    program.run("volume", "stop")
    absent = program.json("service", "run", "--all", "--config", place, code=1)["steps"][0]
    assert "nobody serves the volumes" in absent["what"]
    assert "safehold-volumes" in absent["remedy"]


def test_a_killed_run_is_begun_anew(program: Program, place: Path, tmp_path: Path) -> None:
    """Not at once: what kills it may do so again."""
    (tmp_path / "stop").write_text("#!/bin/sh\nkill -9 $PPID\n")
    (tmp_path / "stop").chmod(0o700)
    place.write_text(
        place.read_text().replace(
            f"disk: {{paths: [{tmp_path}/disk.img]",
            f"""\
disk: {{paths: [{tmp_path}/disk.img], brackets: ['hook:{tmp_path}/stop'], downtime: 10s""",
        )
    )
    assert program.run("service", "run", "--config", place, code=-9).returncode == -9
    memory = program.home / "state/service.json"
    assert program.json("service", "run", "--config", place, code=2)["steps"][0]["on"] == "gone"
    left = json.loads(memory.read_text())
    assert left["cut"] == {"backup disk": 1}
    (tmp_path / "stop").write_text("#!/bin/sh\n")
    left["times"]["backup disk"] -= 901
    memory.write_text(json.dumps(left))
    again = program.json("service", "run", "--config", place)["steps"]
    assert (again[0]["step"], again[0]["on"], again[0]["code"]) == ("backup", "disk", 0)
    assert json.loads(memory.read_text())["cut"] == {}


def test_a_full_state_directory(program: Program, place: Path, tmp_path: Path) -> None:
    """Nothing can be remembered; everything is done and told all the same."""
    full = [program.home / "state", program.home / "cache"]
    for one in full:
        one.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=64k", "none", one)
        with contextlib.suppress(OSError):
            (one / "other").write_bytes(bytes(1 << 20))
    try:
        done = program.run("service", "run", "--all", "--config", place, code=2)
        listed = program.json("points")["points"]
    finally:
        for one in full:
            run("umount", "-l", one)
    assert "ok      backup www" in done.stdout
    assert "ok      backup disk" in done.stdout
    assert "FAILED  backup gone" in done.stdout
    assert "ok      prune main" in done.stdout
    assert "cannot be remembered" in done.stderr
    assert len(listed) == 2
    assert "no such file" in (tmp_path / "told").read_text()
    assert 'step="backup",on="www"' in (tmp_path / "safehold.prom").read_text()


def test_a_machine_in_trouble_is_no_bug(program: Program, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8k", "none", place)
    try:
        with contextlib.suppress(OSError):
            (place / "other").write_bytes(bytes(1 << 20))
        said = program.run("service", "run", SAFEHOLD_HOME=str(place), code=2).stderr
        assert "cannot be read" in said
        (place / "config").mkdir()
        said = program.run("config", "init", SAFEHOLD_HOME=str(place), code=1).stderr
    finally:
        run("umount", "-l", place)
    assert "no room left on this machine" in said
    assert "bug" not in said


def test_a_run_that_is_stopped_leaves_its_figures(program: Program, place: Path, tmp_path: Path) -> None:
    (tmp_path / "stop").write_text("#!/bin/sh\ntest $1 = thaw || kill -TERM $PPID\n")
    (tmp_path / "stop").chmod(0o700)
    place.write_text(
        place.read_text().replace(
            f"disk: {{paths: [{tmp_path}/disk.img]",
            f"disk: {{paths: [{tmp_path}/disk.img], brackets: ['hook:{tmp_path}/stop'], downtime: 10s",
        )
    )
    assert "stopped" in program.run("service", "run", "--config", place, code=1).stderr
    figures = (tmp_path / "safehold.prom").read_text()
    assert 'safehold_last_run_code{step="backup",on="www",vault="main"} 0' in figures


class Hook(BaseHTTPRequestHandler):
    """Keeps what it is sent, and answers as the server says."""

    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Listener(HTTPServer):
    got: ClassVar[list[tuple[str, str, dict[str, object]]]] = []
    answer = 204


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener(("127.0.0.1", 0), Hook)
    server.got.clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_address_is_told(program: Program, place: Path, tmp_path: Path, listener: Listener) -> None:
    address = f"http://127.0.0.1:{listener.server_port}/told?by=safehold"
    place.write_text(place.read_text().replace(f"{{command: {tmp_path}/tell}}", f"{{webhook: '{address}'}}"))
    done = program.run("service", "run", "--config", place, code=2)
    ((path, kind, document),) = listener.got
    assert (path, kind) == ("/told?by=safehold", "application/json")
    assert (document["step"], document["on"], document["vault"], document["code"]) == ("backup", "gone", "main", 2)
    assert "no such file" in str(document["what"])
    assert document["remedy"]
    assert str(document["run"]) in done.stderr
    # An address that refuses, and one where nobody listens, are warned of and end nothing.
    listener.answer = 500
    done = program.run("service", "run", "--config", place, "--all", code=2)
    assert len(listener.got) == 2
    assert "nobody could be told of the failure (HTTP Error 500" in done.stderr
    place.write_text(place.read_text().replace(f":{listener.server_port}/", ":1/"))
    done = program.run("service", "run", "--config", place, "--all", code=2)
    assert "nobody could be told of the failure" in done.stderr
    assert "ok      prune main" in done.stdout


def test_what_a_command_writes(program: Program, place: Path, tmp_path: Path) -> None:
    program.passphrase = False
    text = place.read_text()
    place.write_text(text.replace("  gone:", f'  dump: {{command: "cat {tmp_path}/disk.img", plan: often}}\n  gone:'))
    assert "dump: what 'cat " in program.run("config", "check", "--config", place, code=1).stdout
    steps = program.json("service", "run", "--config", place, code=2)["steps"]
    assert ("backup", "dump", 0) in [(s["step"], s["on"], s["code"]) for s in steps]
    place.write_text(text.replace("  gone:", '  dump: {command: "false", plan: often}\n  gone:'))
    steps = program.json("service", "run", "--all", "--config", place, code=2)["steps"]
    assert ("backup", "dump", 1) in [(s["step"], s["on"], s["code"]) for s in steps]
    (pruned,) = (s for s in steps if s["step"] == "prune")
    assert pruned["figures"]["waiting"] == 0, "a backup that failed is waited for by nobody"
    dump = tmp_path / "dump"
    dump.write_text("#!/bin/sh\necho data\necho reading >&2\nprintf 'no such\\033 database: shop\\n\\n' >&2\nexit 3\n")
    dump.chmod(0o700)
    place.write_text(text.replace("  gone:", f'  dump: {{command: "{dump}", plan: often}}\n  gone:'))
    done = program.run("service", "run", "--all", "--config", place, code=2)
    assert "reading\nno such\x1b database: shop\n" in done.stderr, "what a program says is passed on"
    failed = "the command failed with exit code 3: nothing that it wrote is kept; it said: no such\\x1b database: shop"
    assert failed in done.stdout
    (problem,) = program.json("status", "dump", "--config", place, code=1)["problems"]
    assert failed in problem["what"]
    program.passphrase = True
    assert len(program.json("points", "dump")["points"]) == 1
