"""Where what memory shows came from: back from a line to the events that it tells of, and the sources that were recorded then."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure.daemon.provenance import (
    Origin,
    Recalled,
    Said,
    by_trust,
    choices,
    leaves,
    origin_of_result,
    texts_by_trust,
    vouched,
)
from perdure.memory.extraction import OWN_WORDS
from perdure.state import projections
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.tools.model import Tool
    from perdure.memory.context import Context
    from perdure.state.events import Event
    from perdure.state.ledger import LedgerReader

# What the session loop pins; of these only a person's standing instruction has words that are not Perdure's or the task's own.
# Every other section comes from memory (story, facts, recalled).
PINNED_SECTIONS = frozenset({"instruction", "constraints", "policies", "open", "last", "slot"})
# What these return is their arguments again; `undo` names files that its own argument does not.
ECHOING = OWN_WORDS - {"undo"}
FOLLOWED_MAX = 20
RECALL = "recall"  # whose results come from what memory came from
PERSON = ("person",)
OWN_FINDINGS = frozenset(
    {"file_exists", "file_contains", "unchanged"}
)  # whose findings quote the condition and nothing else
UNKNOWN = ("unknown",)  # nobody recorded it: an older Perdure, or a payload that is gone

_NAMED = re.compile(r"\[[rf](\d+)")  # how a line names the event that a record or a fact was made from
_SOURCE = re.compile(r"#(\d+)")

Behind = Callable[[int], Sequence[Said]]


def recalled_lines(context: Context, behind: Behind) -> Iterator[Recalled]:
    """Each line that memory put into the context. A line with several names may tell of any of them."""
    for section in context.sections:
        if section.name in PINNED_SECTIONS:
            continue
        if section.name == "standing":
            yield Recalled(section.text, lambda text=section.text: [Said(PERSON, text)])  # type: ignore[misc]  # bound at once
            continue
        for line in section.text.splitlines():
            yield Recalled(line, _of_all(map(int, _NAMED.findall(line)), behind))


def recalled_by_tool(result: JSON, behind: Behind) -> Iterator[Recalled]:
    """Each record and fact that the tool RECALL returned. Where one does not say which events it tells of, its source is
    unknown."""
    parts = [part for name in ("facts", "records") for part in _list(_mapping(result).get(name))]
    for part in map(_mapping, parts):
        text = " ".join(leaves(dict(part)))
        events = [int(number) for number in _SOURCE.findall(str(part.get("source", "")))]
        yield Recalled(text, _of_all(events, behind) if events else lambda text=text: [Said(UNKNOWN, text)])  # type: ignore[misc]  # bound at once


def origin_of_recalled(result: JSON, behind: Behind) -> Origin:
    """Where all that RECALL returned came from: memory, and whatever its records and facts tell of. `result` may be that of
    several calls, and what `last` kept of it; a shape that RECALL does not return has an unknown source."""
    sources = {"memory"}
    for one in result if isinstance(result, list) else [result]:
        if one is not None and not _mapping(one).keys() & {"facts", "records"}:
            sources.update(UNKNOWN)
        for line in recalled_by_tool(one, behind):
            sources.update(*(said.sources for said in line.behind()))
    return Origin(by_trust(sources))


def _of_all(events: Iterable[int], behind: Behind) -> Callable[[], Sequence[Said]]:
    numbers = dict.fromkeys(events)
    return lambda: [said for number in numbers for said in behind(number)]


class Recollection:
    """Reads what stood in events of the ledger, with its sources; each event once. Nothing: an event of Perdure's own words."""

    def __init__(self, reader: LedgerReader, tools: Mapping[str, Tool]) -> None:
        self._reader = reader
        self._tools = tools
        self._known: dict[int, tuple[Said, ...]] = {}
        self._depth = 0

    def of_event(self, seq: int) -> tuple[Said, ...]:
        """What the event says, piece by piece."""
        if seq not in self._known:
            event = self._reader.event(seq)
            self._known[seq] = () if event is None else tuple(self._read(event))
        return self._known[seq]

    def _read(self, event: Event) -> Iterable[Said]:
        match event.type:
            case "action.proposed" | "action.decided" | "escalation.opened":
                return self._proposal(str(event.body["action"]))
            case "action.ended":
                return self._action(event)
            case "escalation.answered" | "escalation.expired":
                row = projections.escalation(self._reader, str(event.body["escalation"]))
                proposed = self._proposal(row.action) if row is not None else ()
                return [*proposed, *self._whole(event, PERSON)]
            case "session.closed":
                return self._closed(event)
            case "step.rejected":
                return self._traced(event)
            case "memory.corrected" | "memory.pinned" | "grant.given":
                return self._whole(event, PERSON)
            case "slot.closed":
                return ()
            case "postcondition.checked":
                return self._postcondition(event)
            case _:
                return self._whole(event, UNKNOWN)

    def _action(self, event: Event) -> Iterator[Said]:
        yield from self._proposal(str(event.body["action"]))
        tool = str(event.body["tool"])
        if tool in ECHOING:
            return
        payload = self._payload(event)
        held = self._tools.get(tool)
        origin = origin_of_result(held.spec if held is not None else None, tool)
        if tool == RECALL:
            origin = origin_of_recalled(payload.get("result"), self._before)
        for is_vouched, text in texts_by_trust(payload.get("result"), origin):
            yield Said(vouched(tool) if is_vouched else origin.sources, text)
        if isinstance(error := payload.get("error") or event.body.get("error"), str):
            yield Said(origin.sources, error)

    def _proposal(self, action: str) -> Iterator[Said]:
        row = projections.action(self._reader, action)
        payload = _mapping(self._reader.payload(row.seq_proposed)) if row is not None else {}
        recorded = _mapping(payload.get("provenance"))
        for name, value in _mapping(payload.get("args")).items():
            # what an earlier session's instruction said is not what this one's says
            sources = tuple(str(each) for each in _list(recorded.get(name)) if each != "instruction")
            for text in choices(value):
                yield Said(sources if recorded.get(name) else UNKNOWN, text, proposed=True)

    def _closed(self, event: Event) -> Iterator[Said]:
        """A model's closing words and what it saved, by what was recorded; a playbook's words are Perdure's, and what it saved is
        what its tools returned."""
        row = projections.session(self._reader, str(event.body["session"]))
        if row is None or row.planner != "playbook":
            yield from self._traced(event)
            return
        actions = projections.actions(self._reader, session=row.session)
        called = {action.tool for action in actions} - ECHOING - {RECALL}
        sources = {f"tool:{tool}" for tool in called}
        for action in actions:
            if action.tool == RECALL and action.seq_ended is not None:
                result = _mapping(self._reader.payload(action.seq_ended)).get("result")
                sources.update(origin_of_recalled(result, self._before).sources)
        for text in leaves(self._payload(event).get("saved")):
            yield Said(by_trust(sources) or UNKNOWN, text)

    def _before(self, seq: int) -> Sequence[Said]:
        """What an earlier event says, of which this one told. Sessions that each tell of the one before are followed so far."""
        if self._depth >= FOLLOWED_MAX:
            return (Said(UNKNOWN, ""),)
        self._depth += 1
        try:
            return self.of_event(seq)
        finally:
            self._depth -= 1

    def _traced(self, event: Event) -> Iterator[Said]:
        payload = self._payload(event)
        if "provenance" not in payload:
            yield from self._whole(event, UNKNOWN)
            return
        for source, parts in _mapping(payload["provenance"]).items():
            if source != "instruction":
                yield from (Said((source,), str(part)) for part in _list(parts))

    def _postcondition(self, event: Event) -> Iterator[Said]:
        """The condition is the task's own; what was found may be a program's or a file's words."""
        payload = self._payload(event)
        yield from (Said(("config",), text) for text in leaves(payload.get("condition")))
        own = ("config",) if event.body["kind"] in OWN_FINDINGS else UNKNOWN
        yield from (Said(own, text) for text in leaves(payload.get("detail")))

    def _whole(self, event: Event, sources: tuple[str, ...]) -> Iterator[Said]:
        yield from (Said(sources, text) for text in leaves(dict(self._payload(event))))

    def _payload(self, event: Event) -> Mapping[str, Any]:
        return _mapping(self._reader.payload(event.seq))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
