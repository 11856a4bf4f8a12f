from __future__ import annotations

import pytest

from safehold.app.sharing import shared_names
from safehold.vault.catalogue import Point
from safehold.vault.records import Member, PointBody


def points(history: str) -> list[Point]:
    """One point of `web` for each word: the host's letter, and a + where it was made with --adopt."""
    member = Member("volume", "web", bytes(32), 0, 0, 1, 1, "crash", "crash", (0.0, 0.0))
    return [
        Point(
            f"points/{n}",
            b"",
            bytes([n]),
            float(n),
            b"",
            b"",
            PointBody((), (member,), f"host-{word[0]}", f"id-{word[0]}", "", "", 0.0, 0.0, adopted="+" in word),
        )
        for n, word in enumerate(history.split())
    ]


@pytest.mark.parametrize(
    ("history", "hosts"),
    [
        ("", []),
        ("a a a", []),
        ("a b", ["id-a", "id-b"]),
        ("a b a b", ["id-a", "id-b"]),
        ("a b+", []),
        ("a b+ b", []),
        ("a b+ a", ["id-b", "id-a"]),
        ("a b b+ b", []),
        ("a+ a b", ["id-a", "id-b"]),
    ],
)
def test_hosts_since_the_last_adoption(history: str, hosts: list[str]) -> None:
    found = shared_names(points(history))
    assert [list(one.hosts) for one in found] == ([hosts] if hosts else [])


def test_it_is_told_with_names() -> None:
    assert "points of 'web' come from host-a (id id-a) and host-b (id id-b)" in str(shared_names(points("a b"))[0])
