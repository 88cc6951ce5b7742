"""What a session may hand to the next: bounded, with its small values (offsets, counts) kept whole."""

from __future__ import annotations

import json
from collections.abc import Mapping

from perdure.state.events import JSON

SAVED_BYTES_MAX = 65_536
# Tried in this order until all fits: (characters of one text, elements of one list or object)
_CUTS = ((4000, 1000), (1000, 200), (200, 50), (50, 10))


def bounded_saved(saved: Mapping[str, JSON]) -> tuple[dict[str, JSON], list[str]]:
    """The values cut to SAVED_BYTES_MAX bytes of JSON in all, and the names of those that lost something.

    Long texts lose their end, long lists and objects their tail, the largest value first; what still does not fit is
    dropped. Numbers and short texts survive as long as anything does.
    """
    kept = dict(saved)
    cut: set[str] = set()
    for text_max, elements_max in _CUTS:
        for name in sorted(kept, key=lambda name: (-_bytes(kept[name]), name)):
            if _bytes(kept) <= SAVED_BYTES_MAX:
                return kept, sorted(cut)
            shorter = _shorter(kept[name], text_max, elements_max)
            if shorter != kept[name]:
                kept[name] = shorter
                cut.add(name)
    while _bytes(kept) > SAVED_BYTES_MAX:
        largest = max(sorted(kept), key=lambda name: _bytes(kept[name]))
        del kept[largest]
        cut.add(largest)
    return kept, sorted(cut)


def _bytes(value: JSON) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _shorter(value: JSON, text_max: int, elements_max: int) -> JSON:
    if isinstance(value, str):
        return value if len(value) <= text_max else value[:text_max] + "…"
    if isinstance(value, list):
        return [_shorter(element, text_max, elements_max) for element in value[:elements_max]]
    if isinstance(value, dict):
        # scalars first: among the entries that stay, an offset matters more than one more list
        names = sorted(value, key=lambda name: isinstance(value[name], list | dict))[:elements_max]
        return {name: _shorter(value[name], text_max, elements_max) for name in value if name in set(names)}
    return value
