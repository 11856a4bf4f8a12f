from __future__ import annotations

from pathlib import Path

import pytest

from safehold.model.clock import SystemClock
from safehold.objects.limit import ByteSemaphore, LimitStore
from safehold.objects.local import LocalStore
from safehold.objects.location import open_store
from safehold.objects.memory import MemoryStore
from safehold.objects.retry import RetryStore
from safehold.ports.store import Store
from safehold.testing.store_suite import StoreTests


class TestMemory(StoreTests):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


class TestLocal(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store")


class TestS3(StoreTests):
    @pytest.fixture
    def store(self, s3: str) -> Store:
        return open_store(s3)


class TestWrapped(StoreTests):
    """Retry and limits change nothing of what a store does."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return RetryStore(LimitStore(LocalStore(tmp_path / "store"), ByteSemaphore(1000)), SystemClock())
