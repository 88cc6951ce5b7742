"""What people took back or told since the last compaction. It holds at once: a session may be under way, and a task may start
from memory that is not up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perdure.memory.extraction import Extraction, Unpinned
from perdure.memory.facts import Fact, settle
from perdure.memory.rows import WORKSPACE, Claim, Pin, Summary, fact_key
from perdure.memory.settled import FactsOfScope, Settled
from perdure.memory.store import Store
from perdure.state.reading import LedgerReader


def gone(store: Store, reader: LedgerReader) -> set[int]:
    """The ledger events whose records are to be removed by the next compaction."""
    found: set[int] = set()
    for event in reader.events(after=store.watermark, types=("memory.forgotten", "payload.erased")):
        if event.type == "payload.erased":
            found |= {event.body["erased"], *(int(id[1:]) for id in store.records_from(event.body["erased"]))}
        elif (name := str(event.body["record"]))[1:].isdigit():
            found.add(int(name[1:]))
    return found


def corrected(store: Store, reader: LedgerReader, scope: str, without: set[int]) -> list[Claim]:
    """What people put right since, as far as a scope sees it, oldest first."""
    extraction = Extraction(reader)
    events = reader.events(after=store.watermark, types=("memory.corrected",))
    told = [change for event in events for change in extraction.changes(event) if isinstance(change, Claim)]
    return [claim for claim in told if claim.seq not in without and (scope == WORKSPACE or claim.task in {None, scope})]


@contextmanager
def facts_now(
    settled: Settled, store: Store, reader: LedgerReader, scope: str, without: set[int]
) -> Iterator[FactsOfScope]:
    """The facts that a scope sees as they stand now: without what is gone, and with what people put right since."""
    settled.refresh()
    facts = settled.of(scope)
    facts.remove(without)
    with facts.with_more(corrected(store, reader, scope, without)):
        yield facts


def known_facts(
    store: Store, reader: LedgerReader, scope: str, subject: str | None = None, attribute: str | None = None
) -> list[Fact]:
    """All facts that a scope sees now, superseded ones too, oldest first; of one subject or attribute, where named."""
    without = gone(store, reader)
    claims = [claim for claim in store.claims(scope, subject, attribute) if claim.seq not in without]
    for claim in corrected(store, reader, scope, without):
        asked = (claim.subject if subject is None else subject, claim.attribute if attribute is None else attribute)
        if fact_key(*asked) == fact_key(claim.subject, claim.attribute):
            claims.append(claim)
    return settle(claims, shared=scope == WORKSPACE)


def standing(store: Store, reader: LedgerReader, scope: str, without: set[int]) -> list[Pin]:
    """The standing instructions for a scope that hold now, oldest first."""
    held = {pin.pin: pin for pin in store.pins(scope)}
    extraction = Extraction(reader)
    for event in reader.events(after=store.watermark, types=("memory.pinned", "memory.unpinned", "memory.forgotten")):
        if event.type == "memory.forgotten":
            held.pop(str(event.body["record"]), None)
            continue
        for change in extraction.changes(event):
            if isinstance(change, Unpinned):
                held.pop(change.pin, None)
            elif isinstance(change, Pin) and (scope == WORKSPACE or change.task in {None, scope}):
                held[change.pin] = change
    return [pin for pin in held.values() if pin.seq not in without]


def tells_of(summary: Summary, without: set[int]) -> bool:
    """Whether a summary holds what is gone; the next compaction makes it again."""
    return summary.seq in without or any(id[1:].isdigit() and int(id[1:]) in without for id in summary.covers)
