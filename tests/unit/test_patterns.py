"""Shell patterns over paths."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold.adapters.files.patterns import compile_patterns


@pytest.mark.parametrize(
    ("pattern", "fits", "not_these"),
    [
        ("*.tmp", ["a.tmp", "x/y/.tmp", "x/y/b.tmp"], ["a.tmpx", "a.tmp/b"]),
        ("node_modules", ["node_modules", "a/b/node_modules"], ["node_modules/x", "my_node_modules"]),
        ("/srv/www/cache", ["srv/www/cache"], ["srv/www/cache/x", "a/srv/www/cache"]),
        ("srv/*/cache", ["srv/a/cache"], ["srv/a/b/cache", "x/srv/a/cache"]),
        ("**/img/**", ["img/a", "a/b/img/c/d"], ["img", "a/myimg/b"]),
        ("img/**", ["img/a", "img/a/b"], ["img", "x/img/a"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz"]),
        ("?.[ch]", ["a.c", "x/b.h"], ["ab.c", "a.o"]),
        ("[!a].txt", ["b.txt"], ["a.txt"]),
        ("dir/", ["x/dir"], ["dir/x"]),
        ("a.b+c(d)", ["a.b+c(d)"], ["aab+c(d)"]),
    ],
)
def test_pattern(pattern: str, fits: list[str], not_these: list[str]) -> None:
    matcher = compile_patterns([pattern])
    assert matcher is not None
    assert [path for path in fits if not matcher(path.encode())] == []
    assert [path for path in not_these if matcher(path.encode())] == []


def test_no_patterns_and_broken_ones() -> None:
    assert compile_patterns([]) is None
    with pytest.raises(ValueError, match=r"\[z-a\]"):
        compile_patterns(["[z-a]"])


@given(st.text("ab*?", min_size=1, max_size=12), st.lists(st.text("ab", min_size=1, max_size=10), min_size=1))
def test_within_a_name_they_are_the_shells(pattern: str, names: list[str]) -> None:
    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    matcher, anchored = compile_patterns([pattern]), compile_patterns([f"/top/{pattern}/[b]*"])
    assert matcher is not None
    assert anchored is not None
    for name in names:
        fits = fnmatchcase(name, pattern)
        assert matcher(f"aa/b/{name}".encode()) == fits
        assert anchored(f"top/{name}/ba".encode()) == fits
        assert not anchored(f"top/{name}/a".encode())


def test_many_stars_take_no_longer_than_a_few() -> None:
    """A pattern that tried every way to share a long name between its stars would not end."""
    matcher = compile_patterns(["*a" * 40 + "b", "x/" + "*a" * 40 + "b/**"])
    assert matcher is not None
    assert not matcher(b"x/" + b"a" * 250)
    assert not matcher(b"x/" + b"a" * 250 + b"/c")
    assert matcher(b"x/" + b"a" * 250 + b"b")
