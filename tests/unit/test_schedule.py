"""When something is due."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold.policies.schedule import Schedule, due_at, is_due, parse_schedule

ZONE = timezone(timedelta(hours=1))


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZONE).timestamp()


@pytest.mark.parametrize(
    ("schedule", "last", "now", "due"),
    [
        ("02:30", None, "2026-11-23T01:00", True),
        ("02:30", "2026-11-22T02:31", "2026-11-23T02:29", False),
        ("02:30", "2026-11-22T02:31", "2026-11-23T02:30", True),
        ("02:30", "2026-11-23T02:30", "2026-11-23T23:00", False),
        ("02:30", "2026-11-10T02:30", "2026-11-23T01:00", True),
        ("sun 03:00", "2026-11-15T03:00", "2026-11-21T23:00", False),
        ("sun 03:00", "2026-11-15T03:00", "2026-11-22T03:00", True),
        ("sun 03:00", "2026-11-22T03:01", "2026-11-25T03:00", False),
        ("02:30", "2027-01-01T00:00", "2026-11-23T02:00", True),
    ],
)
def test_times_of_day(schedule: str, last: str | None, now: str, due: bool) -> None:
    assert is_due(parse_schedule(schedule), at(last) if last else None, at(now), ZONE) is due


@given(st.floats(0, 1e6), st.floats(1, 1e5))
def test_spans(age: float, every: float) -> None:
    assert is_due(Schedule(every=every), 1e9, 1e9 + age) is ((1e9 + age) - 1e9 >= every)


@given(st.integers(0, 23), st.integers(0, 59), st.sampled_from([None, 0, 6]), st.integers(1, 400))
def test_looking_often_makes_one_start_a_period(hour: int, minute: int, weekday: int | None, step: int) -> None:
    schedule = Schedule(hour=hour, minute=minute, weekday=weekday)
    now, last, starts = 1.7e9, 1.7e9, 0
    for _ in range(28 * 1440 // step):
        now += step * 60
        if is_due(schedule, last, now, ZONE):
            last, starts = now, starts + 1
    assert abs(starts - (28 if weekday is None else 4)) <= 1


@pytest.mark.parametrize("text", ["", "2:30", "24:00", "12:60", "someday 10:00", "02:30 sun"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="no time of day"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("schedule", "last", "due"),
    [
        ("02:30", "2026-11-22T02:31", "2026-11-23T02:30"),
        ("02:30", "2026-11-22T02:30", "2026-11-23T02:30"),
        ("02:30", "2026-11-22T02:29", "2026-11-22T02:30"),
        ("02:30", "2026-11-10T12:00", "2026-11-11T02:30"),
        ("sun 03:00", "2026-11-15T03:00", "2026-11-22T03:00"),
        ("sun 03:00", "2026-11-15T02:59", "2026-11-15T03:00"),
        ("sun 03:00", "2026-11-16T03:00", "2026-11-22T03:00"),
    ],
)
def test_the_next_time(schedule: str, last: str, due: str) -> None:
    assert due_at(parse_schedule(schedule), at(last), at("2026-11-22T12:00"), ZONE) == at(due)


@given(st.sampled_from(["02:30", "sun 03:00", "wed 23:59"]), st.floats(0, 1e6), st.floats(0, 1e6))
def test_due_then_and_not_before(text: str, age: float, later: float) -> None:
    schedule, last = parse_schedule(text), 1.7e9
    due = due_at(schedule, last, last + age, ZONE)
    assert not is_due(schedule, last, due - 1, ZONE) or due - 1 <= last
    assert is_due(schedule, last, due + later, ZONE)
    assert due_at(Schedule(every=60), last, last + age) == last + 60
    assert due_at(schedule, None, last) == due_at(schedule, last + 1e5, last) == last
