"""Generated contexts, as many as one likes: none above its budget, pinned text always there byte for byte, the same bytes twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from tests.memory.test_contexts import CASES, CONTEXTS_OF_A_CASE, check_budgets

CASES_AT_ONCE = 250  # after each, a word about how far it is


def check_contexts(count: int, start: int, tell: Callable[[int], None]) -> int:
    """Check at least `count` generated contexts, from seed `start` on; returns how many. Raises AssertionError with the case."""
    done = 0
    number = start
    while done < count:
        _checked(number)
        done += CASES_AT_ONCE * CONTEXTS_OF_A_CASE
        number += 1
        tell(done)
    return done


def _checked(number: int) -> None:
    @seed(number)
    @settings(
        max_examples=CASES_AT_ONCE,
        derandomize=False,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(*CASES)
    def cases(material: Any, pinned: Any, budget: Any, overhead: Any, factor: Any) -> None:
        check_budgets(material, pinned, budget, overhead, factor)

    cases()
