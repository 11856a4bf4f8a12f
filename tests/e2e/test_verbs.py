"""What the program says to somebody who does not know its verbs."""

from __future__ import annotations

import re

import click
import pytest

from safehold.cli.hints import hint, words_with_hints
from safehold.cli.main import cli
from safehold.testing.program import Program


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("list", "safehold points"),
        ("snapshots", "safehold points"),
        ("delete", "safehold point expire"),
        ("show", "safehold point show"),
        ("mount", "--to volume:NAME"),
        ("point delete", "safehold point expire"),
        ("vault list", "safehold points"),
        ("vault status", "safehold status"),
        ("bakup", "did you mean safehold backup?"),
        ("point shwo", "did you mean safehold point show?"),
        ("nothing-like-it", "safehold --help"),
        ("vault nothing-like-it", "safehold vault --help"),
    ],
)
def test_a_verb_that_is_none(program: Program, asked: str, hint: str) -> None:
    said = program.run(*asked.split(), code=2).stderr
    assert f"no such verb: safehold {asked}\n" in said
    assert hint in said
    assert program.json(*asked.split(), code=2)["error"]["code"] == 2


def verbs(group: str) -> dict[str, click.Command]:
    context = click.Context(cli)
    found = cli.get_command(context, group) if group else cli
    assert isinstance(found, click.Group)
    return {name: command for name in found.list_commands(context) if (command := found.get_command(context, name))}


def test_hints_lead_to_verbs_that_there_are() -> None:
    for group, word in words_with_hints():
        assert word not in verbs(group), "somebody asked for a verb that there is"
        for first, second in re.findall(r"safehold ([a-z-]+)(?: ([a-z-]+))?", hint(group, word, ())):
            command = verbs("")[first]
            assert not isinstance(command, click.Group) or second in verbs(first)


def test_verbs_are_listed_with_whole_sentences(program: Program) -> None:
    for group in ((), ("point",), ("vault",), ("volume",), ("key",)):
        said = program.run(*group, "--help", COLUMNS="80").stdout
        assert "..." not in said.partition("Commands:")[2]
    assert "that no keep rule keeps" in " ".join(program.run("point", "--help", COLUMNS="80").stdout.split())
