"""What of the ledger is worth remembering: one event (and the earlier ones it ends) becomes records, claims and pins. The
result depends on nothing but the ledger up to that event, so that memory can always be made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from perdure.memory import tokens
from perdure.memory.excerpts import RESULT_MAX, WORDS_MAX, call, one_line, shown
from perdure.memory.facts import VALUE_MAX
from perdure.memory.store import Claim, Pin, Record, Speaker
from perdure.state.escalations import escalation as question
from perdure.state.events import JSON, Event
from perdure.state.reading import LedgerReader

# What these built-in tools return is Perdure's own words; what any other returns may be anybody's.
OWN_WORDS = frozenset({"write_file", "append_file", "move_file", "delete_file", "notify", "remember", "undo"})
RECALLING = frozenset({"recall"})  # what was recalled is never remembered again


@dataclass(frozen=True, slots=True)
class Unpinned:
    """A standing instruction ends."""

    pin: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A person wants this record gone."""

    record: str


@dataclass(frozen=True, slots=True)
class Erased:
    """The payload of this event is gone, and with it what memory made of it."""

    seq: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session's records are complete."""

    session: str
    task: str
    at: int


@dataclass(frozen=True, slots=True)
class Zoned:
    """The days, weeks and months of a task are those of this zone from now on."""

    task: str
    zone: str
    at: int


@dataclass(frozen=True, slots=True)
class Summarised:
    """A model's summary, kept in the ledger, takes the place of the extractive one. `text` None: it was erased."""

    summary: str
    session: str
    seq: int
    text: str | None
    covers: tuple[str, ...]
    untrusted: bool
    model: str


@dataclass(frozen=True, slots=True)
class NotSummarised:
    """The extractive summary stays. `session` is where a model was asked in vain; None: no call was made."""

    summary: str
    session: str | None


@dataclass(frozen=True, slots=True)
class ModelStopped:
    """No model is asked for summaries any more, or (`stopped` False) a person lets it go on."""

    stopped: bool


Change: TypeAlias = (
    Record
    | Claim
    | Pin
    | Unpinned
    | Forgotten
    | Erased
    | SessionEnded
    | Zoned
    | Summarised
    | NotSummarised
    | ModelStopped
)


class Extraction:
    """Reads events in their order and says what each changes in memory."""

    def __init__(self, events: LedgerReader) -> None:
        self._events = events
        self._dry: dict[str, bool] = {}
        self._handlers: Mapping[str, Callable[[Event], list[Change]]] = {
            "action.ended": self._action_ended,
            "action.decided": self._action_decided,
            "escalation.answered": self._answered,
            "escalation.expired": self._expired,
            "step.rejected": self._rejected,
            "postcondition.checked": self._postcondition,
            "session.closed": self._session_closed,
            "slot.closed": self._slot_closed,
            "grant.given": self._granted,
            "memory.pinned": self._pinned,
            "memory.unpinned": lambda event: [Unpinned(event.body["pin"])],
            "memory.corrected": self._corrected,
            "memory.forgotten": lambda event: [Forgotten(event.body["record"])],
            "payload.erased": lambda event: [Erased(int(event.body["erased"]))],
            "task.loaded": lambda event: [
                Zoned(str(event.body["task"]), str(event.body.get("timezone") or "UTC"), event.at)
            ],
            "summary.made": self._summarised,
            "summary.refused": lambda event: [
                NotSummarised(str(event.body["summary"]), event.body["session"] if event.body.get("call") else None)
            ],
            "compaction.stopped": lambda event: [ModelStopped(True)] if event.body["what"] == "model-summaries" else [],
            "compaction.resumed": lambda _: [ModelStopped(False)],
        }

    @property
    def types(self) -> frozenset[str]:
        """The event types that change memory."""
        return frozenset(self._handlers)

    def changes(self, event: Event) -> list[Change]:
        """What `event` changes; nothing for a dry run, which only pretended."""
        handler = self._handlers.get(event.type)
        session = event.body.get("session")
        if handler is None or (session and event.type != "slot.closed" and self._is_dry(str(session))):
            return []
        return handler(event)

    # -- actions ------------------------------------------------------------------------------------------------------

    def _action_ended(self, event: Event) -> list[Change]:
        tool, status = str(event.body["tool"]), str(event.body["status"])
        if tool in RECALLING and status == "succeeded":
            return []
        outcome = self._payload(event)
        proposed, proposal = self._proposal(str(event.body["action"]))
        sources = (proposed.seq, event.seq) if proposed else (event.seq,)
        if outcome is None or proposal is None:
            return []  # erased: what was made from it is gone, and stays gone in a rebuild
        result = outcome.get("result")
        if tool == "remember" and status == "succeeded":
            return self._remembered(event, result, sources, untrusted=_tainted(proposal))
        text = f"{call(tool, _mapping(proposal.get('args')))} {status}"
        if error := outcome.get("error") or event.body.get("error"):
            text += f": {shown(error)}"
        if result is not None:
            text += f": {shown(result)}"
        record = self._record(
            event, text, kind="action" if status == "succeeded" else "failure", speaker="tool",
            untrusted=_tainted(proposal) or tool not in OWN_WORDS, sources=sources,
        )  # fmt: skip
        return [record]

    def _remembered(self, event: Event, result: JSON, sources: tuple[int, ...], *, untrusted: bool) -> list[Change]:
        said = _mapping(result)
        claim = self._claim(event, said, "agent")
        if claim is None:
            return []
        text = f"{claim.subject} — {claim.attribute}: {claim.value}"
        record = self._record(
            event, one_line(text, WORDS_MAX), kind="fact", speaker="agent", untrusted=untrusted, sources=sources
        )
        return [record, claim]

    def _action_decided(self, event: Event) -> list[Change]:
        decision = event.body["decision"]
        if decision == "auto":
            return []
        proposed, proposal = self._proposal(str(event.body["action"]))
        if proposed is None or proposal is None:
            return []
        what = call(str(proposed.body["tool"]), _mapping(proposal.get("args")))
        rules = ", ".join(
            f"{rule.get('name')} ({rule.get('file')}:{rule.get('line')})" for rule in event.body.get("rules", ())
        )
        verb = "policy denied" if decision == "deny" else "needs a person's answer:"
        text = f"{verb} {what}; {one_line(str(event.body['reason']), RESULT_MAX)}" + (
            f" [{one_line(rules, RESULT_MAX)}]" if rules else ""
        )
        kind = "refusal" if decision == "deny" else "question"
        return [
            self._record(
                event,
                text,
                kind=kind,
                speaker="perdure",
                untrusted=_tainted(proposal),
                sources=(proposed.seq, event.seq),
            )
        ]

    def _answered(self, event: Event) -> list[Change]:
        payload = self._payload(event)
        if payload is None:
            return []
        answer = "approved" if event.body["answer"] == "approve" else "denied"
        opened, what = self._question(str(event.body["escalation"]))
        text = f"a person (uid {event.body['uid']}) {answer} {what}"
        if note := payload.get("note"):
            text += f": {one_line(str(note), WORDS_MAX)}"
        session = None if opened is None else opened.body.get("session")
        return [
            self._record(
                event,
                text,
                kind="answer",
                speaker="person",
                untrusted=False,
                sources=self._sources(opened, event),
                session=session,
            )
        ]

    def _expired(self, event: Event) -> list[Change]:
        opened, what = self._question(str(event.body["escalation"]))
        text = f"nobody answered in time about {what}; the default is {event.body['default']}"
        session = None if opened is None else opened.body.get("session")
        return [
            self._record(
                event,
                text,
                kind="answer",
                speaker="perdure",
                untrusted=False,
                sources=self._sources(opened, event),
                session=session,
            )
        ]

    # -- sessions and slots -------------------------------------------------------------------------------------------

    def _rejected(self, event: Event) -> list[Change]:
        detail = _mapping(self._payload(event)).get("detail")
        said = f": {shown({'detail': detail}, RESULT_MAX // 2)}" if detail else ""
        text = f"step {event.body['step']} was rejected ({event.body['reason']}){said}"
        return [self._record(event, text, kind="rejection", speaker="perdure", untrusted=True, sources=(event.seq,))]

    def _postcondition(self, event: Event) -> list[Change]:
        payload = self._payload(event)
        if event.body["passed"] or payload is None:
            return []
        text = f"postcondition {event.body['kind']} does not hold: {shown(payload.get('condition'))}"
        if detail := payload.get("detail"):
            text += f"; {shown(detail)}"
        return [self._record(event, text, kind="failure", speaker="perdure", untrusted=True, sources=(event.seq,))]

    def _session_closed(self, event: Event) -> list[Change]:
        body = event.body
        payload = self._payload(event)
        changes: list[Change] = []
        if payload is not None:
            text = f"session {body['status']} after {body['steps']} steps: {one_line(str(body['reason']), RESULT_MAX)}"
            if says := payload.get("says"):
                text += f"; it said: {one_line(str(says), WORDS_MAX)}"
            if saved := payload.get("saved"):
                text += f"; it saved {shown(saved)}"
            changes.append(
                self._record(
                    event,
                    text,
                    kind="closing",
                    speaker="agent",
                    sources=(event.seq,),
                    untrusted=any(map(_is_tool, _mapping(payload.get("provenance")))),
                )
            )
        return [*changes, SessionEnded(str(body["session"]), str(body["task"]), event.at)]

    def _slot_closed(self, event: Event) -> list[Change]:
        body = event.body
        if body["outcome"] not in {"missed", "refused"}:
            return []
        times = f" ({body['count']} firings)" if body.get("count", 1) > 1 else ""
        text = f"slot {body['slot']} was {body['outcome']}{times}" + (f": {body['rule']}" if body.get("rule") else "")
        return [self._record(event, text, kind="failure", speaker="perdure", untrusted=False, sources=(event.seq,))]

    # -- people -------------------------------------------------------------------------------------------------------

    def _granted(self, event: Event) -> list[Change]:
        payload = self._payload(event)
        if payload is None:
            return []
        text = f"a person (uid {event.body['uid']}) allowed {event.body['tool']} for good where {shown(payload.get('pattern'))}"
        if note := payload.get("note"):
            text += f": {one_line(str(note), WORDS_MAX)}"
        return [self._record(event, text, kind="answer", speaker="person", untrusted=False, sources=(event.seq,))]

    def _pinned(self, event: Event) -> list[Change]:
        payload = self._payload(event)
        if payload is None:
            return []
        return [
            Pin(
                pin=event.body["pin"],
                seq=event.seq,
                at=event.at,
                task=event.body.get("task"),
                text=str(payload.get("text", "")),
            )
        ]

    def _corrected(self, event: Event) -> list[Change]:
        claim = self._claim(event, self._payload(event) or {}, "person")
        if claim is None:
            return []
        text = f"a person (uid {event.body['uid']}) corrected: {claim.subject} — {claim.attribute}: {claim.value}"
        return [
            self._record(
                event, one_line(text, WORDS_MAX), kind="fact", speaker="person", untrusted=False, sources=(event.seq,)
            ),
            claim,
        ]

    # -- summaries ------------------------------------------------------------------------------------------------------

    def _summarised(self, event: Event) -> list[Change]:
        payload = self._payload(event) or {}
        text = payload.get("text")
        return [
            Summarised(
                summary=str(event.body["summary"]), session=str(event.body["session"]), seq=event.seq,
                text=text if isinstance(text, str) else None,
                covers=tuple(str(record) for record in _list(payload.get("covers", []))),
                untrusted=bool(event.body["untrusted"]), model=str(event.body["model"]),
            )
        ]  # fmt: skip

    # -- shared -------------------------------------------------------------------------------------------------------

    def _record(
        self,
        event: Event,
        text: str,
        *,
        kind: str,
        speaker: Speaker,
        untrusted: bool,
        sources: tuple[int, ...],
        session: str | None = None,
    ) -> Record:
        return Record(
            id=f"r{event.seq}", seq=event.seq, at=event.at, task=event.body.get("task"),
            session=session or event.body.get("session"), kind=kind, speaker=speaker, untrusted=untrusted, text=text,
            tokens=tokens.count(text), sources=sources,
        )  # fmt: skip

    def _claim(self, event: Event, said: Mapping[str, Any], speaker: Speaker) -> Claim | None:
        subject, attribute, value = (said.get(name) for name in ("subject", "attribute", "value"))
        if subject is None or attribute is None or value is None:
            return None
        words = value.strip() if isinstance(value, str) else shown(value, VALUE_MAX)
        if not words or len(words) > VALUE_MAX or not str(subject).strip():
            return None
        return Claim(
            seq=event.seq, at=event.at, task=event.body.get("task"), subject=one_line(str(subject), 400),
            attribute=one_line(str(attribute), 400), value=one_line(words, VALUE_MAX), speaker=speaker,
        )  # fmt: skip

    def _proposal(self, action: str) -> tuple[Event | None, Mapping[str, Any] | None]:
        for event in self._events.events(action=action, types=["action.proposed"], limit=1):
            return event, self._payload(event)
        return None, {}

    def _question(self, escalation: str) -> tuple[Event | None, str]:
        """The event that opened the question, and the action it is about."""
        row = question(self._events, escalation)
        opened = None if row is None else self._events.event(row.seq)
        if opened is None:
            return None, f"question {escalation}"
        _, proposal = self._proposal(str(opened.body["action"]))
        return opened, call(str(opened.body["tool"]), _mapping((proposal or {}).get("args")))

    def _sources(self, opened: Event | None, event: Event) -> tuple[int, ...]:
        return (event.seq,) if opened is None else (opened.seq, event.seq)

    def _payload(self, event: Event) -> Mapping[str, Any] | None:
        """The event's payload as a mapping (empty where it has none), or None where it was erased."""
        if self._events.erased(event.seq):
            return None
        payload = self._events.payload(event.seq)
        return payload if isinstance(payload, dict) else {} if payload is None else {"text": payload}

    def _is_dry(self, session: str) -> bool:
        if session not in self._dry:
            opened = next(iter(self._events.events(session=session, types=["session.opened"], limit=1)), None)
            if len(self._dry) > 1_000:
                self._dry.clear()
            self._dry[session] = bool(opened and opened.body.get("dry_run"))
        return self._dry[session]


def _tainted(proposal: Mapping[str, Any]) -> bool:
    return any(_is_tool(source) for chosen in _mapping(proposal.get("provenance")).values() for source in _list(chosen))


def _is_tool(source: object) -> bool:
    return isinstance(source, str) and source.startswith("tool:")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]
