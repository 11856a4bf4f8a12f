"""From a vault's address to its store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from safehold.model.errors import UsageError
from safehold.objects.local import LocalStore
from safehold.ports.store import Store

__all__ = ["UPLOAD_BUDGET", "open_store"]

UPLOAD_BUDGET = 192 * 1024 * 1024
"""Bytes being uploaded at once by a process, over all of its sessions."""


def open_store(url: str) -> Store:
    """The bare store at a path, `file://` or `s3://` address, without retries. UsageError for any other scheme."""
    scheme = urlsplit(url).scheme
    if scheme == "s3":
        # The cloud library takes longer to load than a backup to a directory may take to start.
        from safehold.objects.cloud import open_s3

        return open_s3(url)
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(url).path)))
    if scheme and "://" in url:
        raise UsageError(f"no store is known for {scheme}://", on=url, remedy="use a directory or s3://bucket/prefix")
    if not url:
        raise UsageError("the vault's address is empty", remedy="give a directory or s3://bucket/prefix")
    return LocalStore(Path(url).expanduser())
