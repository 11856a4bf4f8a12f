"""From a vault's address to its store."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safehold.model.errors import UsageError
from safehold.objects.endpoint import s3_endpoint
from safehold.objects.local import LocalStore
from safehold.ports.store import Store

__all__ = ["UPLOAD_BUDGET", "full_address", "local_place", "open_store", "within"]

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


def within(path: str, url: str) -> bool:
    """Whether a path is a vault's own directory on this machine, or lies in it."""
    real = os.path.realpath(os.path.expanduser(path))
    homes = [os.path.realpath(place) for place in local_place(url)]
    return any(os.path.commonpath([real, home]) == home for home in homes)


def full_address(url: str) -> str:
    """The address of a store with the service that it is at: a bucket of one name may be at several."""
    endpoint = s3_endpoint() if urlsplit(url).scheme == "s3" else None
    return f"{url} at {endpoint}" if endpoint else url
