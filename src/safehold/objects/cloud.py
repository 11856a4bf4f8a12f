"""An S3-compatible bucket (and what else obstore speaks) as an object store."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from safehold.model.errors import (
    ObjectExists,
    ObjectNotFound,
    SafeholdError,
    ShortRead,
    StoreError,
    StoreFull,
    StorePermission,
    StoreUnavailable,
    UsageError,
)
from safehold.objects.endpoint import s3_endpoint
from safehold.objects.names import check_name, check_prefix
from safehold.ports.store import Capabilities, Stamp

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from typing_extensions import Buffer

__all__ = ["CloudStore", "open_s3"]

_PARALLEL = 8
"""Requests under way at once: enough to fill a 10 Gbit/s link with 16 MiB objects at 100 ms."""

_PASSING = re.compile(
    r"status code: (?:50[0234]|429)|toomanyrequests|timed out|timeout|connect|error sending request|slowdown|internalerror|reset|\beof\b|broken pipe"
)
"""Messages of failures that may pass; the library gives text and no status code."""

_PAST_THE_END = re.compile(r"status code: 416|[Rr]equested range|out of range|InvalidRange")
_FULL = re.compile(r"status code: 507|insufficientstorage|quotaexceeded|storagefull|no space left")
_REFUSED = re.compile(r"status code: 40[13]|accessdenied|signaturedoesnotmatch|invalidaccesskeyid|forbidden")


def open_s3(url: str) -> CloudStore:
    """The store at `s3://bucket/prefix`; endpoint and credentials come from the usual AWS environment variables.

    UsageError where the endpoint is plain HTTP and not on this machine.
    """
    parts = urlsplit(url)
    if not parts.netloc:
        raise UsageError("no bucket in the vault's address", on=url, remedy="write s3://bucket/prefix")
    endpoint = s3_endpoint()
    where = urlsplit(endpoint or "")
    plain = where.scheme == "http"
    if plain and not _on_loopback(where.hostname or ""):
        raise UsageError(
            "the S3 endpoint is not encrypted and not on this machine",
            on=str(endpoint),
            remedy="use an https:// endpoint",
        )
    prefix = parts.path.strip("/")
    bucket = S3Store(
        parts.netloc,
        prefix=prefix or None,
        config={"endpoint": endpoint} if endpoint else None,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        client_options={"allow_http": plain, "timeout": timedelta(minutes=5), "connect_timeout": timedelta(seconds=10)},
        # Retries are ours to make: after a lost answer somebody has to look whether the object is there.
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )
    return CloudStore(bucket, f"s3://{parts.netloc}/{prefix}".rstrip("/"))


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class CloudStore:
    """Objects below one prefix of a bucket. Store time is the time the service gives, the version its ETag."""

    def __init__(self, bucket: ObjectStore, url: str) -> None:
        self._bucket = bucket
        self.url = url
        self.caps = Capabilities(parallel=_PARALLEL)

    def put(self, name: str, parts: Sequence[Buffer], *, create_only: bool = True) -> Stamp:
        """See `ports.store.Store`. One request, never a multipart upload: its creation is what is atomic."""
        check_name(name)
        data = parts[0] if len(parts) == 1 else b"".join(bytes(part) for part in parts)
        try:
            result = obstore.put(
                self._bucket, name, data, mode="create" if create_only else "overwrite", use_multipart=False
            )
        except Exception as error:
            self._fail(error, name)
        # The answer to a put carries no time; whoever needs the store's time asks with `head`.
        return Stamp(name, memoryview(data).nbytes, result["e_tag"] or "", 0.0)

    def read_into(self, name: str, offset: int, buf: memoryview) -> None:
        """See `ports.store.Store`."""
        if not len(buf):
            self.head(name)
            return
        try:
            data = obstore.get_range(self._bucket, check_name(name), start=offset, length=len(buf))
        except Exception as error:
            if _PAST_THE_END.search(str(error).partition("Debug source")[0]) and not isinstance(
                error, FileNotFoundError
            ):
                raise ShortRead(f"object ends before {offset}", on=name) from error
            self._fail(error, name)
        if len(data) != len(buf):
            raise ShortRead(f"object ends at {offset + len(data)}, before {offset + len(buf)}", on=name)
        buf[:] = memoryview(data)

    def get(self, name: str) -> bytes:
        """See `ports.store.Store`."""
        try:
            return bytes(obstore.get(self._bucket, check_name(name)).bytes())
        except Exception as error:
            self._fail(error, name)

    def head(self, name: str) -> Stamp:
        """See `ports.store.Store`."""
        try:
            meta = obstore.head(self._bucket, check_name(name))
        except Exception as error:
            self._fail(error, name)
        return Stamp(name, meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())

    def list(self, prefix: str, after: str = "") -> Iterator[Stamp]:
        """See `ports.store.Store`. The library lists by whole segments, so the rest of the prefix is compared here."""
        directory = check_prefix(prefix).rpartition("/")[0]
        try:
            stream = obstore.list(self._bucket, directory or None, offset=after or None, chunk_size=1000)
            for batch in stream:
                for meta in batch:
                    name = meta["path"]
                    if name.startswith(prefix) and name > after:
                        yield Stamp(name, meta["size"], meta["e_tag"] or "", meta["last_modified"].timestamp())
        except Exception as error:
            self._fail(error, prefix)

    def delete(self, name: str, version: str | None = None) -> None:
        """See `ports.store.Store`."""
        try:
            if version is not None and self.head(name).version != version:
                return
            obstore.delete(self._bucket, check_name(name))
        except ObjectNotFound:
            return
        except Exception as error:
            if not isinstance(error, FileNotFoundError):
                self._fail(error, name)

    def _fail(self, error: Exception, name: str) -> NoReturn:
        """Tell the library's failures apart and raise ours."""
        if isinstance(error, SafeholdError | ValueError):
            raise error
        # What follows repeats the message with the library's own settings, whose names look like failures.
        text = " ".join(str(error).partition("Debug source")[0].split())
        where = f"{self.url}/{name}"
        # Names are hexadecimal: a hash may hold what looks like a status code.
        low = text.lower().replace(name.lower(), "")
        if "nosuchbucket" in low:
            raise StoreError(
                "no such bucket", on=self.url, remedy="create the bucket, or correct the address"
            ) from error
        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            raise ObjectNotFound("no such object", on=name) from error
        if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
            raise ObjectExists("object exists already", on=name) from error
        if _FULL.search(low):
            raise StoreFull(
                "the store has no room left", on=f"{where} ({text[:200]})", remedy="raise the quota, or free space"
            ) from error
        refused = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
        if refused or _REFUSED.search(low):
            raise StorePermission(
                "the store refuses access",
                on=where,
                remedy="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
            ) from error
        if _PASSING.search(low):
            raise StoreUnavailable(
                "the store does not answer", on=f"{where} ({text[:200]})", remedy="check the network and the endpoint"
            ) from error
        raise StoreError(f"the store failed ({text[:200]})", on=where) from error
