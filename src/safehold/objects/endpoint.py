"""Which S3 service is meant."""

from __future__ import annotations

import os

__all__ = ["s3_endpoint"]


def s3_endpoint() -> str | None:
    """The service that the usual environment variables name; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
