"""How many tokens a model may count for one of ours, before its provider has counted anything."""

from __future__ import annotations

import re

# Our tables are OpenAI's. For others they undercount by 15 to 20 %, more on code (measured): the safe default until counts are in.
SAFE_FACTORS = {"gpt": 1.05, "o": 1.05, "claude": 1.30}
SAFE_FACTOR = 1.35

_FAMILY = re.compile(r"[a-z]+")


def family(model: str) -> str:
    """`anthropic:claude-sonnet-4-5` and `claude-3-haiku` are both `claude`."""
    name = model.lower().rsplit(":", 1)[-1].rsplit("/", 1)[-1]
    found = _FAMILY.match(name)
    return found.group() if found else name


def safe_factor(model: str) -> float:
    """The factor to use before the provider has counted anything."""
    return SAFE_FACTORS.get(family(model), SAFE_FACTOR)
