"""Expiry against an independent oracle, and against rules with planted mistakes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safehold.policies import retention
from safehold.policies.retention import Candidate, KeepRules, decide

DAY = 86400.0
NOW = 1_795_000_000.0
ZONE = timezone(timedelta(hours=2))


def oracle(points: list[Candidate], rules: KeepRules, now: float, minimum_age: float) -> set[str]:
    """Ids that are kept, said another way: bucket by bucket, each rule by itself, from the oldest on."""
    kept = {p.id for p in points if p.kept}
    for resources in {tuple(sorted(p.resources)) for p in points}:
        mine = sorted((p for p in points if tuple(sorted(p.resources)) == resources), key=lambda p: (p.time, p.id))
        good = [p for p in mine if p.own or p.sound]
        kept |= {p.id for p in mine if p not in good or (not p.own and p.time > now - minimum_age)}
        kept |= {p.id for p in mine for t in rules.tags if t in p.tags or t in {f"{k}={v}" for k, v in p.tags.items()}}
        whole = [p for p in good if p.complete]
        kept |= by_each_rule(good, rules, now) | by_each_rule(whole, rules, now) | {p.id for p in whole[-1:]}
        kept |= {p.id for p in good[-1:]}
        proved = [p.id for p in mine if p.verified]
        if proved and not kept & set(proved):
            kept.add(proved[-1])
    return kept


def by_each_rule(good: list[Candidate], rules: KeepRules, now: float) -> set[str]:
    kept: set[str] = set()
    spaced: list[Candidate] = []
    for p in good[::-1]:
        others = [q for q in spaced if not q.own]
        if p.own or not others or others[-1].time - p.time >= 3600:
            spaced.append(p)
    kept |= {p.id for p in spaced[: rules.last]}

    def calendar(p: Candidate) -> dict[str, tuple[object, ...]]:
        t = datetime.fromtimestamp(p.time, ZONE)
        year, week, _ = t.isocalendar()
        return {
            "hourly": (t.date(), t.hour),
            "daily": (t.date(),),
            "weekly": (year, week),
            "monthly": (t.year, t.month),
            "yearly": (t.year,),
        }

    for rule in ("hourly", "daily", "weekly", "monthly", "yearly"):
        last_of_each = [list(g)[-1].id for _, g in groupby(good, key=lambda p, r=rule: calendar(p)[r])]  # type: ignore[misc]
        number = getattr(rules, rule)
        kept |= set(last_of_each[len(last_of_each) - number :] if number < len(last_of_each) else last_of_each)
    kept |= towers(good, rules.hanoi)
    if rules.window:
        kept |= {p.id for p in good if p.time >= now - rules.window}
        kept |= {p.id for p in [p for p in good if p.time < now - rules.window][-1:]}
    return kept


def towers(points: list[Candidate], number: int) -> set[str]:
    """Point by point: what shares its span with no earlier day, and lies just before the newest day's span, of some length or of none."""
    last_of_day = {datetime.fromtimestamp(p.time, ZONE).toordinal(): p.id for p in points}
    kept = set()
    for day, name in last_of_day.items():
        earlier = [other for other in last_of_day if other < day]
        later = [other for other in last_of_day if other > day]
        if number and not later:
            kept.add(name)
        for length in [2**level for level in range(number - 1)]:
            begins = not any(other // length == day // length for other in earlier)
            spans = {other // length for other in later} - {day // length}
            if begins and len(spans) == 1:
                kept.add(name)
    return kept


small = st.integers(0, 4)
rule_sets = st.builds(
    KeepRules,
    last=small,
    hourly=small,
    daily=small,
    weekly=small,
    monthly=small,
    yearly=small,
    hanoi=small,
    window=st.sampled_from([0.0, 0.0, DAY, 35 * DAY]),
    tags=st.sampled_from([(), (), ("legal",), ("env=prod",)]),
).filter(lambda rules: not rules.empty)


@st.composite
def schedules(draw: st.DrawFn) -> list[Candidate]:
    return schedule(random.Random(draw(st.integers(0, 2**32))), draw(st.integers(0, 40)))


def schedule(rng: random.Random, count: int) -> list[Candidate]:
    out = []
    span = rng.choice([3600.0, DAY, 40 * DAY, 4000 * DAY])
    for n in range(count):
        own = rng.random() < 0.6
        out.append(
            Candidate(
                id=f"{n:04}",
                resources=rng.choice([("a",), ("a",), ("b",), ("a", "b"), ("b", "a")]),
                # Whole quarter hours, so that points share instants and sit on borders.
                time=(NOW - rng.random() * span) // 900 * 900,
                tags=rng.choice([{}, {}, {"legal": "1"}, {"env": "prod"}, {"env": "test"}]),
                complete=rng.random() < 0.7,
                own=own,
                sound=own or rng.random() < 0.7,
                verified=rng.random() < 0.1,
                kept=("held",) if rng.random() < 0.05 else (),
            )
        )
    return out


def kept(points: list[Candidate], rules: KeepRules, minimum_age: float) -> set[str]:
    return {d.point.id for d in decide(points, rules, NOW, minimum_age=minimum_age, zone=ZONE) if d.keep}


@settings(max_examples=2000, deadline=None)
@given(schedules(), rule_sets, st.sampled_from([0.0, 0.0, 2 * DAY]))
def test_against_the_oracle(points: list[Candidate], rules: KeepRules, minimum_age: float) -> None:
    assert kept(points, rules, minimum_age) == oracle(points, rules, NOW, minimum_age)


def seeded(count: int) -> list[tuple[list[Candidate], KeepRules, float]]:
    rng = random.Random(2)
    out = []
    for _ in range(count):
        rules = KeepRules(*(rng.choice([0, 0, 1, 2, 5]) for _ in range(7)), window=rng.choice([0.0, 0.0, 7 * DAY]))
        if not rules.empty:
            out.append((schedule(rng, rng.randrange(25)), rules, rng.choice([0.0, DAY])))
    return out


@pytest.mark.soak
def test_a_hundred_thousand_schedules() -> None:
    for points, rules, minimum_age in seeded(100_000):
        assert kept(points, rules, minimum_age) == oracle(points, rules, NOW, minimum_age)


def test_schedules() -> None:
    for points, rules, minimum_age in seeded(5_000):
        assert kept(points, rules, minimum_age) == oracle(points, rules, NOW, minimum_age)


def _oldest_of_each(newest_first, period, most):  # type: ignore[no-untyped-def]
    chosen = {}
    for point in newest_first:
        key = period(point)
        if key in chosen or len(chosen) < most:
            chosen[key] = point
    return list(chosen.values())


def _newest_multiples(newest_first, levels, zone):  # type: ignore[no-untyped-def]
    """Nested: on a day whose number ends in zeros all levels are one point."""
    found = (next((p for p in newest_first if int(p.time // DAY) % 2**level == 0), None) for level in range(levels))
    return [point for point in found if point]


MISTAKES: dict[str, tuple[str, Callable[..., object]]] = {
    "the oldest of a period is kept": ("_newest_of_each", _oldest_of_each),
    "one period too few": (
        "_newest_of_each",
        lambda points, period, most, right=retention._newest_of_each: right(points, period, max(0, most - 1)),
    ),
    "a flood counts": ("_newest_of_hours", list),
    "the point before the window is dropped": (
        "_window",
        lambda points, window, now: [p for p in points if window and p.time >= now - window],
    ),
    "tags match by their key alone": ("_tagged", lambda point, tag: tag.partition("=")[0] in point.tags),
    "hanoi ends a level too early": (
        "_hanoi",
        lambda points, levels, zone, right=retention._hanoi: right(points, max(0, levels - 1), zone),
    ),
    "hanoi takes multiples": ("_hanoi", _newest_multiples),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(retention, name, wrong)
    cases = [(p, replace(r, tags=("env=prod",)), a) for p, r, a in seeded(400)]
    assert any(kept(points, rules, age) != oracle(points, rules, NOW, age) for points, rules, age in cases)


def test_a_flood_of_a_stolen_writer_empties_nothing() -> None:
    good = [Candidate(f"good{n}", ("web",), NOW - n * DAY, own=False) for n in range(1, 6)]
    flood = [Candidate(f"evil{n}", ("web",), NOW - n, own=False) for n in range(1000)]
    rules = KeepRules(last=4)
    assert {"good1", "good2", "good3"} <= kept(good + flood, rules, 0.0)
    # Points whose structure nobody has seen to be whole take nobody's place, however many they are.
    unsound = [replace(p, sound=False) for p in flood]
    assert {"good1", "good2", "good3", "good4"} <= kept(good + unsound, rules, 0.0)


def test_partial_points_take_no_place_of_a_complete_one() -> None:
    """A disk that fails a little each day; among them two days on which all of it could be read."""
    days = [Candidate(f"{n:02}", ("disk",), NOW - n * DAY, complete=n in (9, 30)) for n in range(40)]
    assert kept(days, KeepRules(last=7), 0.0) == {f"{n:02}" for n in (*range(7), 9, 30)}
    assert kept(days, KeepRules(last=1), 0.0) == {"00", "09"}
    assert kept(days, KeepRules(tags=("none",)), 0.0) == {"00", "09"}


@pytest.mark.parametrize("rules", [KeepRules(last=3, daily=5), KeepRules(hanoi=5), KeepRules(window=9 * DAY)])
@given(schedules())
def test_complete_points_stay_as_if_there_were_no_others(rules: KeepRules, points: list[Candidate]) -> None:
    whole = [p for p in points if p.complete]
    assert kept(whole, rules, 0.0) - {p.id for p in whole if p.verified} <= kept(points, rules, 0.0)


@settings(max_examples=300, deadline=None)
@given(schedules(), rule_sets)
def test_what_is_never_let_go(points: list[Candidate], rules: KeepRules) -> None:
    stays = kept(points, rules, 0.0)
    assert {p.id for p in points if p.kept} <= stays
    for resources in {tuple(sorted(p.resources)) for p in points}:
        mine = [p for p in points if tuple(sorted(p.resources)) == resources]
        assert stays & {p.id for p in mine}
        whole = [p for p in mine if p.complete and p.counts]
        assert not whole or max(whole, key=lambda p: (p.time, p.id)).id in stays
        proved = {p.id for p in mine if p.verified}
        assert not proved or stays & proved


@settings(max_examples=300, deadline=None)
@given(schedules(), rule_sets)
def test_doing_it_twice_changes_nothing(points: list[Candidate], rules: KeepRules) -> None:
    stays = kept(points, rules, 0.0)
    left = [p for p in points if p.id in stays]
    again = kept(left, rules, 0.0)
    assert again <= stays


def zeros(day: int) -> int:
    return len(f"{day:b}") - len(f"{day:b}".rstrip("0"))


def test_a_tower_of_hanoi_that_grows_by_a_point_a_day() -> None:
    """Applied each day, six levels keep six days: the newest whose numbers end in 0, 1, 2, 3, 4 and in five or more zeros."""
    rules = KeepRules(hanoi=6)
    begin = datetime(2026, 1, 1, 2, 30, tzinfo=ZONE)
    history: list[Candidate] = []
    for n in range(400):
        now = begin + timedelta(days=n)
        history = [*history, Candidate(f"{now.toordinal()}", ("a",), now.timestamp())]
        history = [d.point for d in decide(history, rules, now.timestamp(), zone=ZONE) if d.keep]
        if n < 64:
            continue
        today = now.toordinal()
        newest = {min(zeros(day), 5): day for day in range(today - 63, today + 1)}
        assert {int(p.id) for p in history} == set(newest.values())
        assert len(history) == 6
        assert 16 <= today - int(history[0].id) <= 31


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 8))
def test_a_tower_of_hanoi_of_days_that_are_missing(gaps: list[int], levels: int) -> None:
    """However far apart the points are: applied after each, rules keep what they would keep applied once, and reach back as far as they can."""
    rules = KeepRules(hanoi=levels)
    day = datetime(2026, 1, 1, 12, tzinfo=ZONE)
    everything: list[Candidate] = []
    left: list[Candidate] = []
    for gap in gaps:
        day += timedelta(days=gap)
        point = Candidate(f"{day.toordinal()}", ("a",), day.timestamp())
        everything.append(point)
        left = [d.point for d in decide([*left, point], rules, NOW, zone=ZONE) if d.keep]
        assert {p.id for p in left} == kept(everything, rules, 0.0)
        top = 2 ** max(0, levels - 2)
        assert levels == 1 or (int(left[0].id) // top == int(point.id) // top) == (
            int(everything[0].id) // top == int(point.id) // top
        )


def test_no_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="no rule"):
        decide([], KeepRules(), NOW)


def test_days_are_those_of_the_zone() -> None:
    midnight = datetime(2026, 3, 1, tzinfo=ZONE).timestamp()
    points = [Candidate("before", ("a",), midnight - 1), Candidate("after", ("a",), midnight + 1)]
    rules = KeepRules(daily=2)
    assert kept(points, rules, 0.0) == {"before", "after"}
    assert {d.point.id for d in decide(points, rules, NOW, zone=UTC) if d.keep} == {"after"}


def test_days_of_this_machine_are_those_that_were_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from summer: two points of one winter day, and two of the hour that there is twice when summer time ends."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        now = datetime(2026, 7, 1, tzinfo=UTC).timestamp()
        winter = [datetime(2026, 1, 10, 0, 30), datetime(2026, 1, 10, 23, 30)]
        points = [Candidate(f"{n}", ("a",), day.timestamp()) for n, day in enumerate(winter)]
        assert [d.reasons for d in decide(points, KeepRules(daily=2), now, zone=None)] == [(), ("daily", "newest")]
        twice = [datetime(2025, 10, 26, hour, 30, tzinfo=UTC) for hour in (0, 1)]
        points = [Candidate(f"{n}", ("a",), hour.timestamp()) for n, hour in enumerate(twice)]
        assert all(d.keep for d in decide(points, KeepRules(hourly=2), now, zone=None))
    finally:
        monkeypatch.undo()
        time.tzset()
