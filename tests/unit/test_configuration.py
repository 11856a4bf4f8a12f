"""The configuration file: what is wrong is named by line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.cli.service import EXAMPLE
from safehold.compose.configuration import load_configuration
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
    load_configuration(written(tmp_path, EXAMPLE))


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
        ("    plan: nightly\n", "", 5, "plan is missing"),
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


def test_no_file_and_rubbish(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_configuration(tmp_path / "nothing")
    for text in ("", "[]", "3", "version: 1", "\0", "a: b: c"):
        with pytest.raises(UsageError):
            load_configuration(written(tmp_path, text))
