"""What a session's unverified effects leave of its certainty: the product of their confidences.

A passed verification replaces an action's confidence by the verifier's declared reliability, a failed one by what is left of
that. Reads change nothing and do not count: a wrong one shows in the effect that follows, whose own confidence does."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from perdure.state.events import EffectClass

RELIABILITY: Final = 0.99  # of a verifier that declares none
SHOWN_MAX: Final = 12


@dataclass(slots=True)
class _Effect:
    step: int
    tool: str
    confidence: float
    verified: bool


class Certainty:
    """The certainty of one session, and of those that it goes on from."""

    def __init__(self) -> None:
        self._effects: dict[str, _Effect] = {}

    def did(self, action: str, step: int, tool: str, effect: EffectClass, confidence: float) -> None:
        """An action was carried out and says that it succeeded."""
        if effect != "read":
            self._effects[action] = _Effect(step, tool, confidence, verified=False)

    def verified(self, action: str, *, passed: bool, reliability: float | None = None) -> None:
        """A verifier looked at the action. The worst word of several counts."""
        effect = self._effects.get(action)
        if effect is None:
            return
        sure = RELIABILITY if reliability is None else reliability
        value = sure if passed else 1 - sure
        effect.confidence = min(effect.confidence, value) if effect.verified else value
        effect.verified = True

    def settle(self) -> None:
        """Everything so far is as good as proven: postconditions passed, or a person was told what is unverified and said
        to go on."""
        self._effects.clear()

    @property
    def value(self) -> float:
        """The chance that everything done so far is right, if errors are independent."""
        return math.prod(effect.confidence for effect in self._effects.values())

    def unverified(self) -> list[str]:
        """The steps that no verifier has looked at or that one contradicted, least certain first, in words."""
        doubtful: Iterable[_Effect] = (
            effect for effect in self._effects.values() if not effect.verified or effect.confidence < 0.5
        )
        ranked = sorted(doubtful, key=lambda effect: effect.confidence)
        words = [f"step {effect.step} {effect.tool} ({effect.confidence:.2f})" for effect in ranked[:SHOWN_MAX]]
        return words + ([f"and {len(ranked) - SHOWN_MAX} more"] if len(ranked) > SHOWN_MAX else [])
