"""Which points a set of keep rules lets go.

Rules only ever add reasons to keep; a point without a reason expires. Times are the store's, so no client's clock steers anything. Points
of the owner's own writer count at once. Points of exported writers count only once their structure was verified, and of those made within
one hour only the newest counts for `keep_last`: a stolen credential that floods the vault pushes nothing out. Partial points push no complete
one out: a failing disk must not end a history of whole backups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

__all__ = ["Candidate", "Decision", "KeepRules", "decide"]

_HOUR = 3600.0


@dataclass(frozen=True)
class KeepRules:
    """How many points to keep of each period, counted over periods that have any; 0 keeps none by that rule.

    `window` keeps everything of the last so many seconds, and the point before, so that each moment of the window can be restored.
    `hanoi` keeps that many points at distances that double, as the Tower of Hanoi has them: where there is a point of each day, six are at
    most 0, 1, 3, 7, 15 and 31 days old, and the oldest at least 16.
    `tags` keeps points with that tag (`key` or `key=value`).
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    hanoi: int = 0
    window: float = 0.0
    tags: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """True where no rule would keep anything."""
        return not any(
            (
                self.last,
                self.hourly,
                self.daily,
                self.weekly,
                self.monthly,
                self.yearly,
                self.hanoi,
                self.window,
                self.tags,
            )
        )


@dataclass(frozen=True)
class Candidate:
    """A point as the rules see it. `time` is the store's, in seconds since 1970.

    `complete` is false for a point that lacks something of what was to be backed up. `own` is true for the owner's own writer; `sound` for a
    point whose structure is known to be whole (needed of others' points); `verified` for one whose data was read and found right. `kept` is
    what stands outside of all rules: a hold, a pin, or the wish at its making that no rule expires it.
    """

    id: str
    resources: tuple[str, ...]
    time: float
    tags: dict[str, str] = field(default_factory=dict)
    complete: bool = True
    own: bool = True
    sound: bool = True
    verified: bool = False
    kept: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """True where the point can take the place of another."""
        return self.own or self.sound


@dataclass(frozen=True)
class Decision:
    """What happens to a point, and why it is kept; a point without reasons expires."""

    point: Candidate
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """True where there is a reason to."""
        return bool(self.reasons)


def decide(
    points: Iterable[Candidate], rules: KeepRules, now: float, *, minimum_age: float = 0.0, zone: tzinfo | None = UTC
) -> list[Decision]:
    """Decide for each point, oldest first. Points of different sets of resources do not count for each other.

    Each rule is applied twice: to the complete points, as if there were no others, and to all of them. `minimum_age` protects points of
    exported writers that are younger. Periods begin and end in `zone`; None for this machine's, by the rules in force at each point's time.
    ValueError for empty rules.
    """
    if rules.empty:
        raise ValueError("no rule keeps anything")
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for point in points:
        groups.setdefault(tuple(sorted(point.resources)), []).append(point)
    decisions = []
    for group in groups.values():
        decisions += _decide(sorted(group, key=lambda p: (p.time, p.id)), rules, now, minimum_age, zone)
    return sorted(decisions, key=lambda d: (d.point.time, d.point.id))


def _decide(
    group: list[Candidate], rules: KeepRules, now: float, minimum_age: float, zone: tzinfo | None
) -> list[Decision]:
    reasons: dict[str, list[str]] = {point.id: list(point.kept) for point in group}
    counting = [point for point in reversed(group) if point.counts]
    complete = [point for point in counting if point.complete]
    for name, point in (*_chosen(counting, rules, now, zone), *_chosen(complete, rules, now, zone)):
        reasons[point.id].append(name)
    for point in group:
        if any(_tagged(point, tag) for tag in rules.tags):
            reasons[point.id].append("tag")
        if not point.own and now - point.time < minimum_age:
            reasons[point.id].append("minimum age")
        if not point.counts:
            reasons[point.id].append("not verified yet")
    if counting:
        reasons[counting[0].id].append("newest")
    if complete and complete[0] is not counting[0]:
        reasons[complete[0].id].append("newest complete")
    verified = [point for point in reversed(group) if point.verified]
    if verified and not any(reasons[point.id] for point in verified):
        reasons[verified[0].id].append("only verified")
    return [Decision(point, tuple(dict.fromkeys(reasons[point.id]))) for point in group]


def _chosen(
    newest_first: Sequence[Candidate], rules: KeepRules, now: float, zone: tzinfo | None
) -> Iterator[tuple[str, Candidate]]:
    """What each rule picks, with the rule's name."""
    yield from (("last", point) for point in _newest_of_hours(newest_first)[: rules.last])
    for name, most, period in (
        ("hourly", rules.hourly, "%Y-%m-%d %H %z"),
        ("daily", rules.daily, "%Y-%m-%d"),
        ("weekly", rules.weekly, "%G-%V"),
        ("monthly", rules.monthly, "%Y-%m"),
        ("yearly", rules.yearly, "%Y"),
    ):
        yield from ((name, point) for point in _newest_of_each(newest_first, _calendar(period, zone), most))
    yield from (("hanoi", point) for point in _hanoi(newest_first, rules.hanoi, zone))
    yield from (("window", point) for point in _window(newest_first, rules.window, now))


def _newest_of_hours(newest_first: Sequence[Candidate]) -> list[Candidate]:
    """All of the owner's own points; of others' the newest within each hour."""
    out: list[Candidate] = []
    last = float("inf")
    for point in newest_first:
        if point.own:
            out.append(point)
        elif last - point.time >= _HOUR:
            out.append(point)
            last = point.time
    return out


def _newest_of_each(
    newest_first: Sequence[Candidate], period: Callable[[Candidate], str], most: int
) -> list[Candidate]:
    chosen: dict[str, Candidate] = {}
    for point in newest_first:
        if len(chosen) >= most:
            break
        chosen.setdefault(period(point), point)
    return list(chosen.values())


def _calendar(period: str, zone: tzinfo | None) -> Callable[[Candidate], str]:
    return lambda point: _local(point, zone).strftime(period)


def _local(point: Candidate, zone: tzinfo | None) -> datetime:
    # Not by today's offset: summer time begins and ends between points.
    return datetime.fromtimestamp(point.time, UTC).astimezone(zone)


def _hanoi(newest_first: Sequence[Candidate], levels: int, zone: tzinfo | None) -> list[Candidate]:
    """The newest point, and for spans of 1, 2, 4, … days the first one of the span before the newest.

    Of a day its newest point counts. A span is aligned to days since the year 1, so a point that a longer span will need is the first of
    each shorter one, and one of them keeps it until then: rules that are applied each day keep what they would keep if applied once. Where
    there is a point of each day, these are the days whose numbers end in just 0, 1, 2, … zeros in binary.
    """
    days: dict[int, Candidate] = {}
    for point in newest_first:
        days.setdefault(_local(point, zone).toordinal(), point)
    numbers = list(days)
    out = [days[day] for day in numbers[: min(levels, 1)]]
    for level in range(levels - 1):
        before = [day for day in numbers if day >> level < numbers[0] >> level]
        if before:
            out.append(days[min(day for day in before if day >> level == before[0] >> level)])
    return out


def _window(newest_first: Sequence[Candidate], window: float, now: float) -> list[Candidate]:
    if not window:
        return []
    inside = [point for point in newest_first if point.time >= now - window]
    before = newest_first[len(inside) : len(inside) + 1]
    return [*inside, *before]


def _tagged(point: Candidate, tag: str) -> bool:
    key, equals, value = tag.partition("=")
    return key in point.tags and (not equals or point.tags[key] == value)
