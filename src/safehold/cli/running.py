"""What the verbs share: options, the run's context, and opening the vault."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from safehold.app.opening import Credentials, Stores, open_owner, open_vault
from safehold.cli.terminal import LineProgress
from safehold.compose.credentials import find_credentials, find_passphrase
from safehold.compose.memory import keep_freed_memory
from safehold.compose.paths import Paths, find_paths
from safehold.compose.wiring import open_stores, places, vault_address
from safehold.model.clock import SystemClock
from safehold.model.context import Context
from safehold.model.errors import UsageError, VaultKeyError
from safehold.model.shown import printable
from safehold.vault.access import Unlocked
from safehold.vault.vault import Vault

__all__ = [
    "Access",
    "Run",
    "ask_new_passphrase",
    "ask_passphrase",
    "confirm",
    "json_option",
    "print_json",
    "print_table",
    "vault_options",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def json_option(function: _F) -> _F:
    """`--json`: the result as one JSON document on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


@dataclass(frozen=True)
class Access:
    """Where the vault is and what opens it, as the options say it; what they leave out is in the environment or asked for."""

    vault: str | None = None
    kit: Path | None = None
    identity: Path | None = None
    writer: Path | None = None


def vault_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Access`, handed to the verb as one argument named `access`."""

    @functools.wraps(function)
    def gathered(
        *args: Any, vault_url: str | None, kit: Path | None, identity: Path | None, writer: Path | None, **kwargs: Any
    ) -> Any:
        return function(*args, access=Access(vault_url, kit, identity, writer), **kwargs)

    decorated: Callable[..., Any] = gathered
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--writer", type=path, help="Open with a writer credential (or SAFEHOLD_WRITER)."),
        click.option("--identity", type=path, help="Open with an X25519 private key in PEM (or SAFEHOLD_IDENTITY)."),
        click.option("--kit", type=path, help="Open with the recovery kit in this file (or SAFEHOLD_KIT)."),
        click.option(
            "--vault",
            "vault_url",
            metavar="PLACE",
            help="The vault: a directory or s3://bucket/prefix (or SAFEHOLD_VAULT).",
        ),
    ):
        decorated = option(decorated)
    return decorated


def ask_passphrase() -> str:
    """Ask on the terminal; VaultKeyError where there is none."""
    if not sys.stdin.isatty():
        raise VaultKeyError(
            "no passphrase",
            remedy="set SAFEHOLD_PASSPHRASE_FILE, SAFEHOLD_PASSPHRASE_COMMAND or SAFEHOLD_PASSPHRASE, or use --kit FILE",
        )
    return str(click.prompt("Passphrase", hide_input=True, err=True))


def ask_new_passphrase(variable: str) -> str:
    """Ask twice for a new passphrase on the terminal; VaultKeyError where there is none."""
    if not sys.stdin.isatty():
        raise VaultKeyError(
            f"no {'new ' * (variable != 'SAFEHOLD_PASSPHRASE')}passphrase",
            remedy=f"set {variable}_FILE, {variable}_COMMAND or {variable}",
        )
    return str(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))


def confirm(question: str, what: str, on: str) -> None:
    """Go on only where somebody says yes. UsageError, that `what` is about to be done `on` something, where nobody is there to be asked."""
    if not sys.stdin.isatty():
        raise UsageError(what, on=on, remedy="nobody is there to be asked: say --yes")
    click.confirm(question, abort=True, err=True)


@dataclass(frozen=True)
class Run:
    """One run of the program: its context and its places."""

    ctx: Context
    paths: Paths

    @classmethod
    @contextlib.contextmanager
    def begin(cls) -> Iterator[Run]:
        """Interrupts ask the run to stop at the next safe place; a second one stops it at once."""
        keep_freed_memory()
        clock = SystemClock()
        base = Context(clock=clock)
        ctx = Context(clock=clock, progress=LineProgress(clock, base.run_id), cancel=base.cancel, run_id=base.run_id)

        def stop(number: int, frame: object) -> None:
            ctx.cancel.cancel()
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

        asked = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # A lost connection, unless nohup says that it does not matter.
            asked.append(signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in asked}
        # Whoever started this may not want to hear of children; here it counts how they end.
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            yield cls(ctx, find_paths(os.environ, os.geteuid()))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def address(self, access: Access) -> str:
        """Where the vault that is meant lies."""
        return vault_address(access.vault, os.environ, self.paths)

    def stores(self, access: Access) -> Stores:
        """The store of the vault that is meant."""
        return open_stores(self.address(access), self.ctx.clock)

    def credentials(self, access: Access) -> Credentials:
        """What opens the vault; asks for a passphrase where nothing else is given."""
        return find_credentials(os.environ, access.kit, access.identity, access.writer, ask_passphrase)

    def open(self, access: Access, credentials: Credentials | None = None) -> Vault:
        """The vault, opened."""
        return open_vault(self.stores(access), credentials or self.credentials(access), places(self.paths), self.ctx)

    def open_owner(self, access: Access) -> tuple[Vault, Unlocked]:
        """The vault opened by its owner, and the opened key itself; VaultKeyError for a writer credential."""
        return open_owner(self.stores(access), self.credentials(access), places(self.paths), self.ctx)

    def new_passphrase(self) -> str:
        """For a new key slot: SAFEHOLD_NEW_PASSPHRASE and its _FILE and _COMMAND forms, else the terminal."""
        return find_passphrase(
            os.environ, "SAFEHOLD_NEW_PASSPHRASE", lambda: ask_new_passphrase("SAFEHOLD_NEW_PASSPHRASE")
        )


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=1))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be. Names and tags come from whoever may write: what a terminal would obey is escaped."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in [headings, *rows]) for n in range(len(headings))]
    for row in [headings, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
