"""Volumes that the configuration names together."""

from __future__ import annotations

import os
from pathlib import Path

from safehold.compose.configuration import load_configuration

__all__ = ["volume_groups"]


def volume_groups(path: Path) -> dict[str, list[str]]:
    """The volumes of each resource that has some in the configuration at `path`; none where there is no such file. UsageError for a wrong one."""
    if not os.path.isfile(path):
        return {}
    return {name: one.volumes for name, one in load_configuration(path).resources.items() if one.volumes}
