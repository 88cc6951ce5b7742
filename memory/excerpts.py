"""Text from anywhere, made fit to be remembered and shown: one line, bounded, nothing in it that could pose as our own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any

from perdure.state.events import JSON

ARGUMENT_MAX = 240  # characters of one argument in a record
RESULT_MAX = 800  # characters of a result in a record
WORDS_MAX = 1_600  # characters of what a planner or a person said
_LOOKED_AT_MAX = 20_000  # characters of each end of a text that are looked at at all

_BLANKS = re.compile(r"[^\S\n]{3,}")
_BREAKS = re.compile(r"\s*[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+\s*")
# Controls, bidirectional overrides, zero-width characters, lone surrogates, private tags: they hide or reorder text.
_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def one_line(text: str, length_max: int) -> str:
    """`text` on one line of at most about `length_max` characters: its head and tail, with how much lies between."""
    full = len(text)
    if full > 2 * _LOOKED_AT_MAX:
        text = text[:_LOOKED_AT_MAX] + "\n" + text[-_LOOKED_AT_MAX:]
    lines = _folded(_BREAKS.split(_BLANKS.sub("  ", text.strip())))
    text = _HIDDEN.sub("\N{REPLACEMENT CHARACTER}", " ⏎ ".join(lines))
    if len(text) <= length_max:
        return text
    head, tail = length_max * 2 // 3, length_max // 3
    return f"{text[:head]} …[{full:,} characters in all]… {text[-tail:]}"


def hides(text: str) -> bool:
    """Whether a text of several lines has characters that hide or reorder what stands there."""
    return _HIDDEN.search(text) is not None


def _folded(lines: Iterable[str]) -> Iterator[str]:
    """Lines that repeat one another become one with a count."""
    for line, repeated in groupby(lines):
        times = sum(1 for _ in repeated)
        yield line if times == 1 else f"{line} (×{times})"


def shown(value: JSON, length_max: int = RESULT_MAX) -> str:
    """A JSON value for a person or a model: strings as they are, the rest as compact JSON."""
    if isinstance(value, str):
        return one_line(value, length_max)
    return one_line(json.dumps(value, ensure_ascii=False, separators=(", ", ": "), default=str), length_max)


def call(tool: str, args: Mapping[str, Any] | None) -> str:
    """An action as `tool(argument=value, …)`."""
    parts = [f"{name}={_argument(value)}" for name, value in (args or {}).items()]
    return f"{tool}({', '.join(parts)})"


def _argument(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(one_line(value, ARGUMENT_MAX), ensure_ascii=False)
    return shown(value, ARGUMENT_MAX)


def minute(at: int) -> str:
    """A time (microseconds UTC) as `2026-11-22 13:52`."""
    try:
        return _minute(at // 60_000_000)
    except (OverflowError, ValueError, OSError):
        return f"{at} µs"


@lru_cache(maxsize=4_096)  # the lines of a context come from few minutes, session after session
def _minute(number: int) -> str:
    return datetime.fromtimestamp(number * 60, tz=UTC).strftime("%Y-%m-%d %H:%M")
