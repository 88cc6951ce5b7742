"""What must hold after every crash and recovery, judged by the observer's log."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from perdure.state import projections as p
from perdure.state.ledger import LedgerReader
from perdure.state.verification import verify

from .agents import Observer


@dataclass(frozen=True)
class Verdict:
    """Every broken promise, in words (none: all were kept), and how many outcomes had become unknown and were settled."""

    failures: tuple[str, ...]
    unknown: int


def judge(state_dir: Path, observer: Observer, *, parity: bool = True) -> Verdict:
    """Look at the ledger and at what the observer saw."""
    found = []
    report = verify(state_dir, parity=parity)
    found += [f"verify: {finding}" for finding in report.findings if finding.grave]
    with LedgerReader.open(state_dir / "ledger.db") as reader:
        found += broken_promises(reader, observer.lines())
        found += [f"{row.action} has an intent and no end" for row in p.open_intents(reader)]
        for row in p.unknown_actions(reader):
            if row.effect != "once" or p.open_escalation_for(reader, row.task, row.digest) is None:
                found.append(f"{row.action} ({row.effect}) is unknown and nobody was asked")
        unknown = sum(event.body["status"] == "unknown" for event in reader.events(types=["action.ended"]))
    return Verdict(tuple(found), unknown)


def violations(state_dir: Path, observer: Observer) -> list[str]:
    """Every broken promise, in words."""
    return list(judge(state_dir, observer).failures)


def broken_promises(reader: LedgerReader, lines: list[list[str]]) -> list[str]:
    """What the ledger says against what the observer saw."""
    found = []
    effects = Counter((line[1], int(line[2])) for line in lines if line[0] == "effect")
    per_action = Counter(action for action, _ in effects.elements())
    intents = {(event.body["action"], event.body["attempt"]) for event in reader.events(types=["action.intended"])}
    outcomes = {event.body["action"] for event in reader.events(types=["action.ended"])}
    approvals = {event.body["escalation"] for event in reader.events(types=["escalation.answered"])}
    found += [
        f"effect {action} attempt {attempt} has no durable intent"
        for action, attempt in effects
        if (action, attempt) not in intents
    ]
    for row in p.actions(reader):
        count = per_action[row.action]
        if row.effect in ("once", "probeable") and count > 1:
            found.append(f"{row.action} ({row.effect}) happened {count} times")
        if count > row.attempt:
            found.append(f"{row.action} happened {count} times in {row.attempt} attempts")
        if row.status == "succeeded" and count == 0:
            found.append(f"{row.action} is recorded as succeeded and never happened")
        if row.status == "failed" and count:
            found.append(f"{row.action} is recorded as failed and happened")
    for line in lines:
        if line[0] == "acknowledged" and line[1] == "outcome" and line[2] not in outcomes:
            found.append(f"the acknowledged outcome of {line[2]} is lost")
        if line[0] == "acknowledged" and line[1] == "approval" and f"E{line[2]}" not in approvals:
            found.append(f"the acknowledged approval of {line[2]} is lost")
    return found
