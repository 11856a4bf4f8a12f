"""Groups of verbs that load a verb when it is asked for."""

from __future__ import annotations

import importlib
import inspect

import click

__all__ = ["LazyGroup"]


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is looked up."""

    def __init__(self, *args: object, verbs: dict[str, str] | None = None, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._verbs = verbs or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all verbs."""
        return sorted({*super().list_commands(ctx), *self._verbs})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, imported now."""
        target = self._verbs.get(cmd_name)
        if target is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        _whole_sentences(command)
        return command


def _whole_sentences(command: click.Command) -> None:
    """Let a verb, and all below it, be listed with the whole first sentence of its help: click cuts it where the line ends."""
    if command.short_help is None and command.help:
        words = " ".join(inspect.cleandoc(command.help).partition("\n\n")[0].split())
        command.short_help = words.partition(". ")[0].removesuffix(".") + "."
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _whole_sentences(below)
