"""What a store is told of in words that lead somebody on."""

from __future__ import annotations

from pathlib import Path

import pytest

from safehold.model.errors import StorePermission
from safehold.objects.check import check_store
from safehold.objects.local import LocalStore, SystemFileCalls
from safehold.objects.memory import MemoryStore
from tests.clocks import FakeClock


@pytest.mark.parametrize(
    ("ahead", "said"), [(0.3, "clock agrees"), (-0.3, "clock agrees"), (7.0, "clock is -7 s"), (-7.0, "clock is +7 s")]
)
def test_a_clock_that_is_right_is_not_minus_nothing_away(ahead: float, said: str) -> None:
    store, ours = FakeClock(), FakeClock()
    ours.time = store.time + ahead
    told = next(probe.detail for probe in check_store(MemoryStore(store), ours) if probe.name == "clock")
    assert said in told


class Foreign(SystemFileCalls):
    """Somebody else's directory."""

    def mkdir(self, path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    def write_file(self, path: str, parts: object) -> None:
        raise PermissionError(13, "Permission denied", path)


def test_the_directory_that_refuses_is_named(tmp_path: Path) -> None:
    """It has an owner and a mode to look at; the object that was to be put there, and directories above it, are not there yet."""
    store = LocalStore(tmp_path / "vault", Foreign())
    with pytest.raises(StorePermission) as raised:
        store.put("gc/0000000000", [b"x"])
    assert raised.value.on == str(tmp_path)
    (tmp_path / "vault/gc").mkdir(parents=True)
    with pytest.raises(StorePermission) as raised:
        store.put("gc/0000000000", [b"x"])
    assert raised.value.on == str(tmp_path / "vault/gc")
