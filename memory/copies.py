"""What the ledger itself holds of an event's payload a second time: a model's summaries, whose texts are payloads of their own."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.state.reading import LedgerReader


def summaries_made_from(reader: LedgerReader, seqs: Iterable[int]) -> list[int]:
    """The `summary.made` events that still have their text and were made from a record of any of these events, oldest first."""
    asked = set(seqs)
    records = {f"r{seq}" for seq in _told_with(reader, asked)}
    found: list[int] = []
    for event in reader.events(types=("summary.made",), after=min(asked, default=0)):
        payload = reader.payload(event.seq)
        covers = payload.get("covers") if isinstance(payload, dict) else None
        if isinstance(covers, list) and records.intersection(map(str, covers)) and event.seq not in asked:
            found.append(event.seq)
    return found


def _told_with(reader: LedgerReader, seqs: Iterable[int]) -> set[int]:
    """These events and those of the same action or question: a record is told of several, and has the number of the last."""
    told = set(seqs)
    events = [event for seq in seqs if (event := reader.event(seq)) is not None]
    for action in {str(event.body["action"]) for event in events if event.body.get("action")}:
        told |= {event.seq for event in reader.events(action=action)}
    if questions := {str(event.body["escalation"]) for event in events if event.body.get("escalation")}:
        answers = reader.events(types=("escalation.answered", "escalation.expired"))
        told |= {event.seq for event in answers if str(event.body["escalation"]) in questions}
    return told
