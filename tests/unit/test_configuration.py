"""The configuration file: what is wrong is named by line and field."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from safehold.cli.service import example
from safehold.compose.configuration import load_configuration
from safehold.compose.paths import find_paths
from safehold.compose.preflight import preflight
from safehold.compose.unattended import OPENED_BY, jobs
from safehold.model.errors import UsageError

GOOD = """\
version: 1
vaults:
  main: {place: /backup/vault, passphrase_file: /etc/pass}
resources:
  www:
    paths: [/srv/www, /etc]
    exclude: ['*.tmp']
    plan: nightly
plans:
  nightly:
    at: "02:30"
    keep: {last: 3, daily: 7, window: 35d}
    verify: {older_than: 30d, read_budget: 10GB}
    prune: 7d
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "safehold.yaml"
    path.write_text(text)
    return path


def test_a_good_one(tmp_path: Path) -> None:
    found = load_configuration(written(tmp_path, GOOD))
    plan = found.plans["nightly"]
    assert (plan.schedule.hour, plan.schedule.minute) == (2, 30)
    assert plan.rules is not None
    assert (plan.rules.last, plan.rules.daily, plan.rules.window) == (3, 7, 35 * 86400)
    assert plan.verification == (30 * 86400, 10 * 1024**3)
    assert plan.pruning == 7 * 86400
    assert found.vault_of(found.resources["www"]) == "main"


def test_the_example_is_of_the_machine_that_it_is_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = find_paths({"SAFEHOLD_HOME": str(tmp_path / "home")}, 1000)
    for variable in [*OPENED_BY.values(), "SAFEHOLD_VAULT"]:
        monkeypatch.delenv(variable, raising=False)
    vault = load_configuration(written(tmp_path, example(tmp_path, os.environ, paths))).vaults["main"]
    assert (vault.place, vault.passphrase_file) == ("/backup/vault", str(tmp_path / "passphrase"))
    assert f"(umask 077; cat > {tmp_path}/passphrase)" in example(tmp_path, os.environ, paths)
    monkeypatch.setenv("SAFEHOLD_VAULT", f"{tmp_path}/my vault: # 1")
    monkeypatch.setenv("SAFEHOLD_PASSPHRASE_FILE", f"{tmp_path}/pass word")
    vault = load_configuration(written(tmp_path, example(tmp_path, os.environ, paths))).vaults["main"]
    assert (vault.place, vault.passphrase_file) == (f"{tmp_path}/my vault: # 1", f"{tmp_path}/pass word")
    monkeypatch.delenv("SAFEHOLD_PASSPHRASE_FILE")
    monkeypatch.setenv("SAFEHOLD_VAULT", "s3://bucket/prefix")
    monkeypatch.setenv("SAFEHOLD_PASSPHRASE_COMMAND", "pass show 'the vault'")
    vault = load_configuration(written(tmp_path, example(tmp_path, os.environ, paths))).vaults["main"]
    assert (vault.place, vault.passphrase_command) == ("s3://bucket/prefix", "pass show 'the vault'")


def test_what_is_lacking_comes_with_what_to_do(tmp_path: Path) -> None:
    text = GOOD.replace("/backup/vault", str(tmp_path / "none")).replace("/etc/pass", str(tmp_path / "pass word"))
    text += f"metrics: {tmp_path}/missing/safehold.prom\n"
    lacking = list(preflight(load_configuration(written(tmp_path, text))))
    assert all(" → " in line for line in lacking)
    assert any(f"(umask 077; cat > '{tmp_path}/pass word')" in line for line in lacking)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("version: 1", "version: 2", 1, "version: this program reads version 1"),
        ("  www:\n", "  www: [\n", 7, "is no YAML"),
        ("exclude:", "exlude:", 7, "resources.www.exlude: no such setting"),
        ("paths: [/srv/www, /etc]", "paths: /srv/www", 6, "resources.www.paths: expected `array`"),
        ("plan: nightly", "plan: nigthly", 8, "did you mean nightly?"),
        ('at: "02:30"', 'at: "25:30"', 11, "is no time of day"),
        ('at: "02:30"', "every: sometimes", 11, "is no span of time"),
        ('    at: "02:30"\n', "", 10, "give one of every"),
        ("last: 3", "last: many", 12, "plans.nightly.keep.last: expected `int`"),
        ("last: 3", "last: -3", 12, "0 or more"),
        ("{last: 3, daily: 7, window: 35d}", "{}", 12, "keep says nothing"),
        ("read_budget: 10GB", "read_budget: lots", 13, "is no size"),
        ("prune: 7d", "prune: 7x", 14, "is no span of time"),
        ("passphrase_file: /etc/pass", "", 3, "give one way to open it"),
        ("passphrase_file: /etc/pass", "passphrase_file: a, kit: b", 3, "give one way to open it"),
        ("    prune: 7d", "    on_failure: {webhook: http://example.org}", 14, "is not encrypted"),
        ("    prune: 7d", "    on_failure: {webhook: 'http://[::1.org'}", 14, "on_failure.webhook: is no address"),
        ("    prune: 7d", "    on_failure: {webhook: 'https://a:99999/'}", 14, "on_failure.webhook: is no address"),
        ("    prune: 7d", "    on_failure: {webhook: 'https://'}", 14, "is no address of a web server"),
        ("    prune: 7d", "    on_failure: {webhook: example.org}", 14, "is no address of a web server"),
        ("    prune: 7d", "    on_failure: {webhook: 'http://localhost.example.org/'}", 14, "is not encrypted"),
        ("    prune: 7d", "    on_failure: {}", 14, "on_failure: tells nobody"),
        ("  www:\n", "  2026:\n", 5, "resources.2026: is no text, and so no name"),
        ("    plan: nightly\n", "    plan: nightly\n    tags: {on: a}\n", 9, "tags.on: is no text"),
        ("    plan: nightly\n", "", 5, "plan is missing"),
        (
            "plans:\n",
            "  www: {paths: [/x], plan: nightly}\nplans:\n",
            5,
            "resources.www: is there twice, in lines 5 and 9",
        ),
        ("    prune: 7d", "    prune: 7d\n    at: '03:30'", 11, "plans.nightly.at: is there twice, in lines 11 and 15"),
        ('at: "02:30"', "every: 0s", 11, "plans.nightly.every: no time at all"),
        ("prune: 7d", "prune: 0d", 14, "plans.nightly.prune: no time at all"),
        ("'*.tmp'", "'[z-a]'", 7, "resources.www.exclude: not a pattern"),
        ("[/srv/www, /etc]", "[/srv/www, etc]", 6, "resources.www.paths: 'etc' does not begin with a slash"),
        ("[/srv/www, /etc]", "['-']", 6, "resources.www.paths: '-' does not begin"),
        ("place: /backup/vault", "place: backup", 3, "vaults.main.place: 'backup' does not begin"),
        ("/etc/pass", "pass", 3, "vaults.main.passphrase_file: 'pass' does not begin"),
        ("passphrase_file: /etc/pass", "writer: ./w", 3, "vaults.main.writer: './w' does not begin"),
        ("read_budget: 10GB", "read_budget: lots", 13, "plans.nightly.verify.read_budget: 'lots' is no size"),
        ("older_than: 30d", "older_than: old", 13, "plans.nightly.verify.older_than: 'old' is no span"),
        ("window: 35d", "window: wide", 12, "plans.nightly.keep.window: 'wide' is no span"),
        ("    prune: 7d", "    on_failure: {command: ./tell}", 14, "on_failure.command: './tell' does not begin"),
        ("    prune: 7d", '    on_failure: {command: "tell \'x"}', 14, "on_failure.command: is no command"),
        ("version: 1\n", "version: 1\nmetrics: safehold.prom\n", 2, "metrics: 'safehold.prom' does not begin"),
    ],
)
def test_what_is_wrong(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_configuration(path)
    told = f"{caught.value} → {caught.value.remedy}"
    assert says in told
    assert f"safehold.yaml:{line}" in told, told


def test_paths_that_begin_elsewhere(tmp_path: Path) -> None:
    """A home directory, what is said to be a tree or an image, and stores of all kinds."""
    text = GOOD.replace("/srv/www, /etc", "~/www, 'tree:/srv/file'")
    for place in ("s3://bucket/x", "file:///backup/vault", "~/vault"):
        load_configuration(written(tmp_path, text.replace("/backup/vault", place)))
    shared = GOOD.replace("  www:\n", "  mail: &all {paths: [/x], plan: nightly}\n  news: {<<: *all}\n  www:\n")
    assert set(load_configuration(written(tmp_path, shared)).resources) == {"mail", "news", "www"}


def test_no_file_and_rubbish(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_configuration(tmp_path / "nothing")
    for text in ("", "[]", "3", "version: 1", "\0", "a: b: c", "a: &a {b: *a}", "a: &a [*a]"):
        with pytest.raises(UsageError):
            load_configuration(written(tmp_path, text))


RUBBISH: list[Any] = [
    *("", "a\0b", "~nosuch/x", "\ud800", "s3://[", "a@b", "'", "9" * 30 + "d", "/" + "x" * 500),
    *(-1, float("nan"), None, [""], {"": 1}, ["a", 1]),
]


def places(at: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield before
    for key in at if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ():
        yield from places(at[key], (*before, key))


def test_rubbish_anywhere_is_named_or_does_no_harm(tmp_path: Path) -> None:
    """As a value of each setting and as the name of each: an error for people, or a configuration that can be gone through."""
    whole = yaml.safe_load(GOOD)
    whole["metrics"] = "/srv/metrics"
    whole["vaults"]["main"]["environment"] = {"AWS_REGION": "eu-west-1"}
    whole["resources"]["www"] |= {
        "tags": {"a": "b"},
        "downtime": "5s",
        "brackets": ["readonly:/srv"],
        "require": "crash",
    }
    whole["resources"]["db"] = {"volumes": ["data"], "plan": "nightly", "brackets": ["fsfreeze:/a"]}
    whole["resources"]["dump"] = {"command": "pg_dump orders", "plan": "nightly"}
    whole["plans"]["nightly"]["on_failure"] = {"command": "/bin/true", "webhook": "https://example.org"}
    paths = find_paths({"SAFEHOLD_HOME": str(tmp_path)}, 0)
    refused = taken = 0
    for place in places(whole):
        for value in RUBBISH:
            for as_name in (False, True):
                document = copy.deepcopy(whole)
                at = document
                for key in place[:-1]:
                    at = at[key]
                if not as_name:
                    document, at = (value, None) if not place else (document, at)
                    if place:
                        at[place[-1]] = value
                elif place and isinstance(at, dict) and isinstance(value, str):
                    at[value] = at.pop(place[-1])
                else:
                    continue
                try:
                    found = load_configuration(written(tmp_path, yaml.safe_dump(document, allow_unicode=False)))
                    list(preflight(found))
                    jobs(found, paths)
                    taken += 1
                except UsageError:
                    refused += 1
    assert refused > 500
    assert taken > 20


@pytest.mark.parametrize(
    "text",
    [
        *(
            "[" * 5000,
            "{a: " * 3000,
            "a: &a [*a]",
            "&a {a: *a}",
            "a: 2026-99-99",
            "? {a: b}\n: c",
            "- a",
            "1",
            "a: !!timestamp x",
        ),
        *(
            "a: !!int x",
            "a: !!binary x",
            "a: !!python/object:os.system x",
            "<<: x",
            "--- a\n--- b",
            "version: 1\nvaults: &a {main: *a}",
        ),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        load_configuration(written(tmp_path, text))


def test_a_pipe_that_nobody_writes_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="holds no settings"):
        load_configuration(tmp_path / "pipe")


def test_a_file_without_end() -> None:
    with pytest.raises(UsageError, match="that is no configuration"):
        load_configuration(Path("/dev/zero"))


@pytest.mark.parametrize("address", ["http://[::1]:80/x", "http://127.0.0.1/", "http://localhost:9", "https://a.b"])
def test_who_can_be_told(tmp_path: Path, address: str) -> None:
    told = load_configuration(written(tmp_path, f"{GOOD}    on_failure: {{webhook: '{address}'}}\n")).plans["nightly"]
    assert told.on_failure is not None
    assert told.on_failure.webhook == address


@pytest.mark.parametrize("way", ["passphrase_file", "kit", "identity", "writer"])
def test_a_key_that_is_none(tmp_path: Path, way: str) -> None:
    (tmp_path / "key").write_text("\n")
    text = GOOD.replace("passphrase_file: /etc/pass", f"{way}: {tmp_path}/key")
    assert [line for line in preflight(load_configuration(written(tmp_path, text))) if f"vaults.main.{way}: " in line]


def test_what_has_no_content_to_keep(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", "/dev/null"):
        text = GOOD.replace("[/srv/www, /etc]", f"['{place}']")
        assert any(
            "is no file, directory or disk → " in line
            for line in preflight(load_configuration(written(tmp_path, text)))
        )


def test_what_this_machine_lacks(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("secret")
    (tmp_path / "vault").mkdir()
    text = (
        GOOD.replace("/backup/vault", str(tmp_path / "vault"))
        .replace("/etc/pass", str(tmp_path / "pass"))
        .replace("/srv/www", str(tmp_path / "www"))
    )
    text += f"    on_failure: {{command: {tmp_path}/page-me}}\nmetrics: {tmp_path}/missing/safehold.prom\n"
    (first, second, third) = preflight(load_configuration(written(tmp_path, text)))
    assert first.startswith("resources.www.paths:")
    assert second.startswith("plans.nightly.on_failure.command:")
    assert third.startswith("metrics:")
    (tmp_path / "vault").rmdir()
    text = text.replace(str(tmp_path / "pass"), str(tmp_path / "other"))
    assert any(
        line.startswith("vaults.main.place:") for line in preflight(load_configuration(tmp_path / "safehold.yaml"))
    )
    assert next(preflight(load_configuration(written(tmp_path, text)))).startswith("vaults.main.passphrase_file:")
