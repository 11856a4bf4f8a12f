"""What other programs get of the environment that this one was started with."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["plain_environment"]

_KEPT = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TZ", "USER")


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """By what programs are found and how they speak, and nothing that opens a vault or a bucket: what a program gets goes on to all that
    it starts, and can be looked at in /proc for as long as one of them runs.
    """
    return {name: environment[name] for name in _KEPT if name in environment}
