"""Sizes, times, selectors and consistency as people write them."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold.app.points import Selector, parse_selector, parse_when
from safehold.cli.terminal import LineProgress
from safehold.model.consistency import Consistency
from safehold.model.context import CancelToken
from safehold.model.errors import CancelledError, UsageError
from safehold.model.resource import what_there_is
from safehold.model.units import format_count, format_duration, format_rate, format_size, parse_size
from tests.clocks import FakeClock


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("512K", 524288), ("1.5MiB", 1572864), ("100G", 100 << 30), ("2 tb", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("wep1", "web1"),
        ("www", "srv-www"),
        ("/srv/www/", "srv-www"),
        ("./www", "srv-www"),
        ("images/disk.img", "disk"),
        ("srv-wwx", "srv-www"),
        ("web", "web4 or web3 or web2"),
        ("nothing*", ""),
        ("", ""),
    ],
)
def test_which_resource_may_be_meant(asked: str, meant: str) -> None:
    names = ["web4", "web3", "web2", "web1", "web1", "srv-www", "disk"]
    remedy = what_there_is(asked, names, "safehold points")
    rest = "see what there is: safehold points"
    assert remedy == (f"did you mean {meant}? Else {rest}" if meant else rest)


@pytest.mark.parametrize("text", ["", "K", "-1", "1X", "1..5K", "one"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_formats() -> None:
    assert [format_size(n) for n in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert [format_duration(n) for n in (0.04, 59.94, 75.2, 7260)] == ["0.0 s", "59.9 s", "1 min 15 s", "2 h 01 min"]
    assert [format_count(n, "file") for n in (0, 1, 2, 1274)] == ["0 files", "1 file", "2 files", "1,274 files"]
    assert format_count(2, "file or part", "files or parts") == "2 files or parts"
    assert format_rate(1024, 0.5) == "2.0 KiB/s"
    assert format_rate(1, 0) == "–"


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("web@latest", Selector("web", "latest")),
        ("web", Selector("web", "latest")),
        ("web@2026-11-20", Selector("web", "2026-11-20")),
        ("web@2026-11-20T10:00", Selector("web", "2026-11-20T10:00")),
        ("web@2026-11-20T10:00:30Z:/etc", Selector("web", "2026-11-20T10:00:30Z", "/etc")),
        ("web@3fa9:/a:b", Selector("web", "3fa9", "/a:b")),
        ("web@3fa9:/a\nb", Selector("web", "3fa9", "/a\nb")),
        ("a@b@latest", Selector("a@b", "latest")),
    ],
)
def test_selectors(text: str, selector: Selector) -> None:
    assert parse_selector(text) == selector


@pytest.mark.parametrize("text", ["web@", "web@:x"])
def test_no_selectors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_selector(text)


@given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1)))
def test_times_cover_what_they_name(when: datetime) -> None:
    moment = when.replace(tzinfo=UTC).timestamp()
    for form in ("%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S"):
        first, last = parse_when(when.strftime(form) + "Z")
        assert first <= moment <= last + 1e-3


@pytest.mark.parametrize("text", ["", "2026", "2026-13", "2026-02-30", "yesterday", "2026-11-20T25:00"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  datetime words some of these
        parse_when(text)


def test_consistency() -> None:
    assert Consistency.NONE < Consistency.CRASH < Consistency.FILESYSTEM < Consistency.APPLICATION
    assert all(Consistency.parse(c.label) is c for c in Consistency)
    with pytest.raises(ValueError, match="is not one of"):
        Consistency.parse("perfect")


def test_cancelling() -> None:
    token = CancelToken()
    token.check()
    token.cancel()
    with pytest.raises(CancelledError):
        token.check()


def test_progress_in_a_pipe_is_plain_lines_with_the_run_id() -> None:
    stream, clock = io.StringIO(), FakeClock()
    progress = LineProgress(clock, "run1", stream)
    progress.start("backup x", 4096)
    for _ in range(3):
        clock.sleep(16)
        progress.advance(1024)
    progress.warn("look at this")
    progress.done()
    assert stream.getvalue().splitlines() == [
        "[run1] backup x: 2.0 KiB of 4.0 KiB (50%), 64 B/s, 32.0 s left",
        "[run1] warning: look at this",
    ]


def test_progress_on_a_terminal_is_one_line_that_moves() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), FakeClock()
    progress = LineProgress(clock, "run1", stream)
    progress.start("verify", None)
    clock.sleep(1)
    progress.advance(1 << 20)
    progress.note("hello")
    progress.done()
    assert stream.getvalue() == "\r\x1b[Kverify: 1.0 MiB, 1.0 MiB/s\r\x1b[Khello\n\r\x1b[K"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_that_cannot_be_written_ends_nothing(terminal: bool) -> None:
    """Such as the log of a service, on a disk that is full."""

    class Full(io.StringIO):
        def isatty(self) -> bool:
            return terminal

        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    clock = FakeClock()
    progress = LineProgress(clock, "run1", Full())
    progress.start("verify", None)
    clock.sleep(60)
    progress.advance(1 << 20)
    progress.note("hello")
    progress.warn("look at this")
    progress.done()
