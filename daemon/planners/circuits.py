"""A circuit breaker for each model: a provider that keeps failing is left alone for a while, also across a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.state.events import Draft, ProviderCircuit

if TYPE_CHECKING:
    from perdure.state.events import Event

FAILURES_MAX = 5  # so many in a row open the circuit
SECONDS_FIRST = 60.0
SECONDS_MAX = 900.0
MICROSECONDS = 1_000_000
LEFT_ALONE = "failed too often and is left alone until"  # in the reason of a session that met an open circuit


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    until: int = 0  # microseconds UTC; 0: closed


class Circuits:
    """The circuits of all models. `changes` are events that the next commit must carry."""

    def __init__(self, now: Callable[[], int], recorded: Iterable[Event] = ()) -> None:
        self._now = now
        self._circuits: dict[str, _Circuit] = {}
        self._changes: list[Draft] = []
        for event in recorded:
            body = event.body
            self._circuits[body["model"]] = _Circuit(body["failures"], body.get("until", 0))

    def open_until(self, model: str) -> int | None:
        """Until when the model is left alone (microseconds UTC); None where it may be asked. When the time is up, one call
        tries: if it fails, the circuit opens again for longer."""
        circuit = self._circuits.get(model)
        return circuit.until if circuit is not None and circuit.until > self._now() else None

    def failed(self, model: str) -> None:
        """The model gave no answer."""
        circuit = self._circuits.setdefault(model, _Circuit())
        circuit.failures += 1
        if circuit.failures < FAILURES_MAX:
            self._changes.append(ProviderCircuit(model=model, state="closed", failures=circuit.failures))
            return
        seconds = min(SECONDS_MAX, SECONDS_FIRST * 2.0 ** min(16, circuit.failures - FAILURES_MAX))
        circuit.until = self._now() + int(seconds * MICROSECONDS)
        opened = ProviderCircuit(model=model, state="open", failures=circuit.failures, until=circuit.until)
        self._changes.append(opened)

    def answered(self, model: str) -> None:
        """The model answered: it may be asked again."""
        circuit = self._circuits.pop(model, None)
        if circuit is not None and circuit.failures:
            self._changes.append(ProviderCircuit(model=model, state="closed", failures=0))

    def changes(self) -> list[Draft]:
        """Events about what changed since this was last asked."""
        changed, self._changes = self._changes, []
        return changed
