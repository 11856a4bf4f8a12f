"""Safehold: incremental, encrypted, provably recoverable points in time."""

__all__ = ["__version__"]

__version__ = "0.1.0"
