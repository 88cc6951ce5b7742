"""What the ledger teaches a daemon that starts: how far planners are to be believed, which providers fail, how they count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.daemon.confidence import EVENT_TYPES, EVENTS_MAX, Calibration
from perdure.daemon.planners.circuits import Circuits

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.daemon.config import Config
    from perdure.state.events import Event
    from perdure.state.ledger import Ledger


@dataclass(slots=True, kw_only=True)
class Learned:
    """`factors` and `drifts` are by model: what our counts of its prompts are multiplied with, and how far its own counts
    are from ours."""

    calibration: Calibration
    circuits: Circuits
    factors: dict[str, float] = field(default_factory=dict)
    drifts: dict[str, float] = field(default_factory=dict)

    def feed(self, events: tuple[Event, ...]) -> None:
        """Take note of what has just been recorded."""
        self.calibration.feed(events)
        for event in events:
            if event.type == "tokens.drifted":
                body = event.body
                self.factors[body["model"]] = body["factor"]
                self.drifts[body["model"]] = body["reported"] / body["counted"] - 1


def learn(config: Config, ledger: Ledger, now: Callable[[], int]) -> Learned:
    """All of it from the ledger's latest events, kept up with what follows. Costs nothing where no model is configured."""
    calibration = Calibration(config.confidence.prior, config.confidence.cold_below)
    after = max(0, ledger.reader.head().seq - EVENTS_MAX)
    kinds = (*EVENT_TYPES, "tokens.drifted", "provider.circuit")
    recorded = list(ledger.reader.events(after=after, types=kinds)) if config.model is not None else []
    circuits = Circuits(now, (event for event in recorded if event.type == "provider.circuit"))
    learned = Learned(calibration=calibration, circuits=circuits)
    learned.feed(tuple(recorded))
    ledger.subscribe(learned.feed)
    return learned
