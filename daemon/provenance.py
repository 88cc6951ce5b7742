"""Where an argument's value came from. Pure: texts in, sources out."""

from __future__ import annotations

from collections.abc import Iterable

_TRUST = {"instruction": 0, "person": 1, "config": 2, "memory": 3, "model": 5}
_TOOL_TRUST = 4


def by_trust(sources: Iterable[str]) -> tuple[str, ...]:
    """The sources without repetition, most trusted first: instruction, person, config, memory, tools, model."""
    return tuple(sorted(set(sources), key=lambda source: (_TRUST.get(source, _TOOL_TRUST), source)))
