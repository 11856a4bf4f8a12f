"""From a vault's address to its store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safehold.model.errors import UsageError
from safehold.objects.endpoint import s3_endpoint
from safehold.objects.local import LocalStore
from safehold.ports.store import Store

__all__ = [
    "UPLOAD_BUDGET",
    "full_address",
    "identities",
    "local_place",
    "open_store",
    "rooted",
    "vault_around",
    "within",
]

UPLOAD_BUDGET = 192 * 1024 * 1024
"""Bytes being uploaded at once by a process, over all of its sessions."""


def open_store(url: str) -> Store:
    """The bare store at a path, `file://` or `s3://` address, without retries. UsageError for any other scheme."""
    scheme = urlsplit(url).scheme
    if scheme == "s3":
        # The cloud library takes longer to load than a backup to a directory may take to start.
        from safehold.objects.cloud import open_s3

        return open_s3(url)
    for place in local_place(url):
        return LocalStore(place)
    if scheme and "://" in url:
        raise UsageError(f"no store is known for {scheme}://", on=url, remedy="use a directory or s3://bucket/prefix")
    raise UsageError("the vault's address is empty", remedy="give a directory or s3://bucket/prefix")


def local_place(url: str) -> list[Path]:
    """The directory of a vault on this machine; none for one elsewhere."""
    if urlsplit(url).scheme == "file":
        return [Path(unquote(urlsplit(url).path))]
    return [Path(url).expanduser()] if url and "://" not in url else []


def rooted(url: str, directory: Path = Path()) -> str:
    """The same address for whoever works elsewhere: that of a vault on this machine may be relative to `directory`, by itself where this process
    works.
    """
    place = Path(url).expanduser()
    if not url or "://" in url or urlsplit(url).scheme == "file" or place.is_absolute():
        return url
    return str((directory / place).resolve())


def within(path: str, url: str) -> bool:
    """Whether a path is a vault's own directory on this machine, or lies in it."""
    real = os.path.realpath(os.path.expanduser(path))
    homes = [os.path.realpath(place) for place in local_place(url)]
    above = [real, *map(str, Path(real).parents)]
    return any(home in above for home in homes) or bool(identities(homes) & identities(above))


def identities(paths: Iterable[str]) -> frozenset[tuple[int, int]]:
    """Device and inode of those that are there: a mount can give a directory any name."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def vault_around(url: str) -> str:
    """The vault on this machine that an address lies in; empty where it lies in none."""
    for place in local_place(url):
        for above in Path(os.path.realpath(place)).parents:
            if (above / "vault.json").is_file() and (above / "keys").is_dir():
                return str(above)
    return ""


def full_address(url: str) -> str:
    """The address of a store with the service that it is at: a bucket of one name may be at several."""
    endpoint = s3_endpoint() if urlsplit(url).scheme == "s3" else None
    return f"{url} at {endpoint}" if endpoint else url
