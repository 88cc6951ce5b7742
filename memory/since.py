"""What people took back or told since the last compaction. It holds at once: a session may be under way, and a task may start
from memory that is not up to date."""

from __future__ import annotations

from perdure.memory.extraction import Extraction, Unpinned
from perdure.memory.rows import WORKSPACE, Pin, Summary
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
