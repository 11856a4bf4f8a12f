"""Entry point: finds the verb, and turns every error into words and an exit code."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence

import click

import safehold
from safehold.cli.failures import as_document, print_failure
from safehold.cli.hints import hint
from safehold.cli.lazy import LazyGroup
from safehold.model.errors import SafeholdError, UsageError
from safehold.model.shown import printable
from safehold.model.unforeseen import explain

__all__ = ["cli", "main", "run"]

_VERBS = {
    "backup": "safehold.cli.backup:backup",
    "cat": "safehold.cli.files:cat",
    "config": "safehold.cli.service:config",
    "diff": "safehold.cli.diff:diff",
    "find": "safehold.cli.files:find",
    "key": "safehold.cli.key:key",
    "ls": "safehold.cli.files:ls",
    "point": "safehold.cli.points:point",
    "points": "safehold.cli.points:points",
    "restore": "safehold.cli.restore:restore",
    "service": "safehold.cli.service:service",
    "status": "safehold.cli.status:status",
    "vault": "safehold.cli.vault:vault",
    "verify": "safehold.cli.verify:verify",
    "volume": "safehold.cli.volume:volume",
}


@click.group(
    cls=LazyGroup,
    verbs=_VERBS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(safehold.__version__, prog_name="safehold", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Backups as incremental, encrypted, provably recoverable points in time.

    Points are written RESOURCE@WHEN: web@latest, web@2026-11-20T10:00, web@ID. Without a verb, shows the status.
    """
    if ctx.invoked_subcommand is None:
        command = cli.get_command(ctx, "status")
        assert command is not None
        ctx.invoke(command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code and never raises what a user could meet."""
    try:
        result = cli.main(args=list(arguments), prog_name="safehold", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SafeholdError as error:
        _report(error, arguments)
        return error.exit_code
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.ClickException as error:
        no_verb = _no_such_verb(error)
        if no_verb is not None:
            _report(no_verb, arguments)
        else:
            error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("safehold: stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output went away: nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the last line of defence: neither a bug nor a full disk may look like a crash
        if os.environ.get("SAFEHOLD_DEBUG"):
            raise
        told = explain(error)
        _report(told, arguments)
        return told.exit_code


def _no_such_verb(error: click.ClickException) -> UsageError | None:
    """An unknown verb with the one that may have been meant; None for any other error."""
    # Releases of click differ in the class of this error.
    word = getattr(error, "command_name", None)
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if not isinstance(word, str) or ctx is None or not isinstance(ctx.command, click.Group):
        return None
    group = ctx.command_path.partition(" ")[2]
    remedy = hint(group, word, ctx.command.list_commands(ctx))
    return UsageError("no such verb", on=f"{ctx.command_path} {word}", remedy=remedy)


def _report(error: SafeholdError, arguments: Sequence[str]) -> None:
    if "--json" in arguments:
        print(json.dumps({"error": as_document(error)}))
    print_failure(error)


class _Shown(io.TextIOWrapper):
    """Standard output on which a name cannot command the terminal: what is not printable is escaped, line by line."""

    def write(self, text: str) -> int:
        if not text.isprintable():
            text = "\n".join(printable(line) for line in text.split("\n"))
        return super().write(text)


def main() -> None:
    """The console script."""
    # A name or an arrow that the terminal's encoding lacks is escaped; it must not end the run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        old = sys.stdout
        sys.stdout = _Shown(
            old.detach(), encoding=old.encoding, errors="backslashreplace", line_buffering=old.line_buffering
        )
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
