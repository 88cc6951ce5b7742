"""Summaries of closed periods (session, day, week, month), each made once, from raw records and never from other summaries;
every line names the records it tells of."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from perdure.memory import tokens
from perdure.memory.excerpts import minute, one_line
from perdure.memory.rows import Level, Record, Summary

PERIODS: tuple[Level, ...] = ("day", "week", "month")
TOKENS_MAX: dict[Level, int] = {"session": 160, "day": 280, "week": 400, "month": 560}
LINE_MAX = 320  # characters of one line of a summary
RECORDS_MAX = 2_000  # raw records that one summary looks at; of more, the weightiest

# How much each kind of record must be in a summary: what people said, what went wrong and what is open come first.
WEIGHTS = {
    "answer": 6.0, "failure": 5.0, "question": 5.0, "refusal": 4.5, "fact": 4.0, "closing": 4.0, "rejection": 3.0, "action": 1.0,
}  # fmt: skip
CHANGING = 1.5  # an action in Perdure's own words changed something; a read only looked

_NUMBERS = re.compile(r"[0-9a-fA-F]{8,}|\d+")
_WORD = re.compile(r"\w{3,}")


class Summariser(Protocol):
    """Makes the text of a summary from raw records, of at most `tokens_max` tokens, naming each record it tells of."""

    name: str

    def summarise(self, records: Sequence[Record], tokens_max: int) -> Draft: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """A summary's text, and the records that its lines tell of."""

    text: str
    covers: tuple[str, ...]
    untrusted: bool


class Extractive:
    """Picks whole records, verbatim, with no model: what people said, failures and open ends first, then what is unusual in
    the period; records that differ only in their numbers become one line with a count. Deterministic."""

    name = "extractive"

    def summarise(self, records: Sequence[Record], tokens_max: int) -> Draft:
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(_template(record), []).append(record)
        words = Counter(word for members in groups.values() for word in _words(members[-1].text))
        # The last of a group stands for it: the newest numbers are the ones to know.
        ranked = sorted(
            groups.values(), key=lambda members: (-self._weight(members, words, len(groups)), members[-1].seq)
        )
        chosen: list[tuple[Record, str]] = []
        used = 0
        covers: list[str] = []
        for members in ranked:
            line, cost = _fitting(members, tokens_max)
            if used + cost > tokens_max:
                continue
            used += cost
            chosen.append((members[-1], line))
            covers.extend(member.id for member in members)
        chosen.sort(key=lambda pair: pair[0].seq)
        told = set(covers)
        return Draft(
            text="\n".join(line for _, line in chosen),
            covers=tuple(sorted(covers, key=_place)),
            untrusted=any(record.untrusted for record in records if record.id in told),
        )

    @staticmethod
    def _weight(members: Sequence[Record], words: Counter[str], groups: int) -> float:
        last = members[-1]
        weight = WEIGHTS.get(last.kind, 1.0)
        if last.kind == "action" and last.speaker == "tool" and not last.untrusted:
            weight *= CHANGING
        mine = _words(last.text)
        rare = sum(math.log((1 + groups) / words[word]) for word in mine) / (1 + len(mine))
        return weight + 0.5 * rare


def session_id(session: str) -> str:
    """The id of a session's summary."""
    return f"session/{session}"


def period_id(task: str, level: Level, start: int, zone: str) -> str:
    """The id of a period's summary: the date on which it began there, as a person would say it."""
    day = datetime.fromtimestamp(start / 1_000_000, tz=_zone(zone)).strftime("%Y-%m-%d")
    return f"{level}/{day}/{task}"


def summarised(
    id: str, task: str, level: Level, start: int, end: int, records: Sequence[Record], summariser: Summariser
) -> Summary | None:
    """What a closed period's records come to; None where nothing is left to tell."""
    if not records:
        return None
    draft = summariser.summarise(weightiest(records), TOKENS_MAX[level])
    return Summary(
        id=id, task=task, level=level, start=start, end=end, text=draft.text, tokens=tokens.count(draft.text),
        covers=draft.covers, untrusted=draft.untrusted, made_by=summariser.name,
    )  # fmt: skip


def weightiest(records: Sequence[Record]) -> Sequence[Record]:
    """At most as many records as one summary looks at, in the order of the ledger."""
    if len(records) <= RECORDS_MAX:
        return records
    weighty = sorted(records, key=lambda record: (-WEIGHTS.get(record.kind, 1.0), -record.seq))[:RECORDS_MAX]
    return sorted(weighty, key=lambda record: record.seq)


def period(level: Level, at: int, zone: str = "UTC") -> tuple[int, int]:
    """The period of this level that holds the time `at`, as [start, end) in microseconds UTC, by the calendar of `zone`.
    Weeks begin on Monday; a day has 23 or 25 hours where the clocks change."""
    moment = datetime.fromtimestamp(at / 1_000_000, tz=_zone(zone))
    moment = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if level == "day":
        end = moment + timedelta(days=1)
    elif level == "week":
        moment -= timedelta(days=moment.weekday())
        end = moment + timedelta(days=7)
    else:
        moment = moment.replace(day=1)
        end = (moment + timedelta(days=32)).replace(day=1)
    return int(moment.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000


@cache
def _zone(name: str) -> ZoneInfo:
    """The zone of that name; one that this machine does not know is UTC here."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return ZoneInfo("UTC")


def _fitting(members: Sequence[Record], tokens_max: int) -> tuple[str, int]:
    """The line for a group and what it costs, shortened until it fits alone: hostile text has many tokens a character."""
    length = LINE_MAX
    while True:
        line = _line(members, length)
        cost = tokens.count(line + "\n")
        if cost <= tokens_max or length < 8:
            return line, cost
        length //= 2


def _line(members: Sequence[Record], length: int) -> str:
    last = members[-1]
    times = f" ×{len(members)}" if len(members) > 1 else ""
    mark = " (untrusted)" if last.untrusted else ""
    return f"{minute(last.at)}{times} [{last.id}]{mark} {one_line(last.text, length)}"


def _template(record: Record) -> str:
    """What stays the same when only numbers change; people's and failed matters are never folded together."""
    if record.speaker == "person" or record.kind in {"fact", "answer"}:
        return record.id
    return f"{record.kind} {_NUMBERS.sub('0', record.text)}"


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _place(id: str) -> tuple[int, str]:
    return (int(id[1:]) if id[1:].isdigit() else 0, id)
