"""`safehold ls`, `cat` and `find`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator

import click

from safehold.app.files import cat as write_content
from safehold.app.files import find_files, list_files, open_place
from safehold.cli.running import Access, Run, json_option, print_json, vault_options
from safehold.compose.patterns import path_matcher
from safehold.model.errors import UsageError
from safehold.model.shown import printable
from safehold.model.units import format_time
from safehold.vault.tree import EntryAt

__all__ = ["cat", "find", "ls"]


@click.command()
@click.argument("selector", metavar="RESOURCE@WHEN[:PATH]")
@click.option("-R", "--recursive", is_flag=True, help="Everything below, with paths.")
@vault_options
@json_option
def ls(selector: str, recursive: bool, access: Access, as_json: bool) -> None:
    """List a directory of a point."""
    with Run.begin() as run:
        opened = run.open(access)
        place = open_place(opened, selector)
        _show(list_files(place, recursive=recursive), as_json=as_json, paths=recursive)


@click.command()
@click.argument("selector", metavar="RESOURCE@WHEN[:PATH]")
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("-0", "--print0", is_flag=True, help="Only the paths, as the bytes they are, each followed by a NUL.")
@vault_options
@json_option
def find(selector: str, patterns: tuple[str, ...], print0: bool, access: Access, as_json: bool) -> None:
    """Find files in a point by shell patterns: *.conf at any depth, /etc/*/passwd from the top, **/img/** across directories."""
    if print0 and as_json:
        raise UsageError("--print0 and --json exclude each other")
    fits = path_matcher(patterns, "PATTERN")
    assert fits is not None
    with Run.begin() as run:
        opened = run.open(access)
        found = find_files(open_place(opened, selector), fits)
        if print0:
            for one in found:
                sys.stdout.buffer.write(b"/" + one.path + b"\0")
            return
        _show(found, as_json=as_json, paths=True)


@click.command()
@click.argument("selector", metavar="RESOURCE@WHEN[:PATH]")
@vault_options
def cat(selector: str, access: Access) -> None:
    """Write a file of a point, or a point made from standard input, to standard output."""
    with Run.begin() as run:
        opened = run.open(access)
        out = sys.stdout.buffer

        def write(data: memoryview) -> None:
            run.ctx.cancel.check()
            out.write(data)

        write_content(opened, selector, write)
        out.flush()


def _show(found: Iterator[EntryAt], *, as_json: bool, paths: bool) -> None:
    if as_json:
        print_json({"entries": [_document(one) for one in found]})
        return
    for one in found:
        entry = one.entry
        name = "/" + printable(one.path) if paths else printable(entry.name)
        if stat.S_ISLNK(entry.mode):
            name += " -> " + printable(entry.target)
        size = f"{os.major(entry.rdev)},{os.minor(entry.rdev)}" if entry.rdev else str(entry.size)
        when = format_time(entry.mtime / 1e9)
        print(f"{stat.filemode(entry.mode)} {entry.uid:>5} {entry.gid:>5} {size:>12} {when} {name}")


def _document(one: EntryAt) -> dict[str, object]:
    entry = one.entry
    return {
        "path": "/" + printable(one.path),
        "path_hex": one.path.hex(),
        "mode": stat.filemode(entry.mode),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime,
        "links": entry.links,
        "target": printable(entry.target),
        "xattrs": {printable(name): value.hex() for name, value in entry.xattrs.items()},
    }
