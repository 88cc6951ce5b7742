"""How many tokens a model really counts for one of ours, learned from what providers reported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from perdure.memory.extraction import Events

# Our tables are OpenAI's. For others they undercount by 15 to 20 %, more on code (measured): the safe default until counts are in.
SAFE_FACTORS = {"gpt": 1.05, "o": 1.05, "claude": 1.30}
SAFE_FACTOR = 1.35
MARGIN = 1.02
COUNTED_MIN = 100  # tokens; on shorter prompts the framing says more than the factor
CALLS_LOOKED_AT = 200

_FAMILY = re.compile(r"[a-z]+")


def family(model: str) -> str:
    """`anthropic:claude-sonnet-4-5` and `claude-3-haiku` are both `claude`."""
    name = model.lower().rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    found = _FAMILY.match(name)
    return found.group() if found else name


def safe_factor(model: str) -> float:
    """The factor to use before the provider has counted anything."""
    return SAFE_FACTORS.get(family(model), SAFE_FACTOR)


def learned_factor(events: Events, model: str, default: float | None = None) -> float:
    """The factor for `model`: the highest that its family's last calls showed, with a margin, and never below `default`
    (the safe one where that is None). A ledger that says nothing of the family gives the default."""
    floor = safe_factor(model) if default is None else default
    ratios = [counted / ours for ours, counted in _counts(events, family(model)) if ours >= COUNTED_MIN and counted > 0]
    if not ratios:
        return floor
    return max(floor, math.ceil(max(ratios) * MARGIN * 1_000) / 1_000)


def _counts(events: Events, name: str) -> Iterable[tuple[float, int]]:
    """Our own count (before any factor) and the provider's, for the family's last calls."""
    replies = events.events(types=["model.replied"], newest_first=True, limit=CALLS_LOOKED_AT)
    for reply in replies:
        counted = reply.body.get("input_tokens")
        if counted is None:
            continue
        session = str(reply.body["session"])
        request = next(
            (
                event
                for event in events.events(
                    session=session, types=["model.requested"], until=reply.seq, newest_first=True
                )
                if event.body["call"] == reply.body["call"]
            ),
            None,
        )
        if request is None or family(str(request.body["model"])) != name:
            continue
        context = next(
            iter(
                events.events(session=session, types=["context.assembled"], until=reply.seq, newest_first=True, limit=1)
            ),
            None,
        )
        factor = float(context.body["factor"]) if context is not None else 1.0
        yield float(request.body["prompt_tokens"]) / factor, int(counted)
