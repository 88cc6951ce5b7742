"""The account of one session, gathered from the ledger's events: what `ledger show` prints and `--json` hands out.

The account is a plain JSON object (docs/json.md, `perdure/session/1`); each part names the sequence numbers it rests on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.daemon.cli.words import iso
from perdure.state import projections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.state.events import Event
    from perdure.state.reading import LedgerReader

Part = dict[str, Any]
ANSWERS = ("escalation.answered", "escalation.expired")


def account_of(reader: LedgerReader, session: str) -> Part:
    """Everything the ledger knows of the session. `session` is its full id."""
    return _Gathering(reader, session).gather()


def question_of(reader: LedgerReader, escalation: str) -> Part | None:
    """A question as it was asked and answered, by its full id; None where the ledger holds none."""
    row = projections.escalation(reader, escalation)
    opened = reader.event(row.seq) if row is not None else None
    return _question(reader, opened) if opened is not None else None


def _question(reader: LedgerReader, opened: Event) -> Part:
    body = opened.body
    payload = reader.payload(opened.seq)
    question = payload.get("question") if isinstance(payload, dict) else None
    part: Part = {
        "escalation": body["escalation"],
        "action": body["action"],
        "digest": body["digest"],
        "session": body["session"],
        "task": body["task"],
        "tool": body["tool"],
        "asked_at": iso(opened.at),
        "expires_at": iso(body["expires"]),
        "on_expiry": body["on_expiry"],
        "parks": body["parks"],
        "state": "open",
        "question": question if isinstance(question, dict) else {"text": question},
        "joined_by": [],
        "answer": None,
        "seq": opened.seq,
        "_expires": body["expires"],
        "_asked": opened.at,
    }
    kinds = ("escalation.joined", *ANSWERS, "action.intended", *(() if body["action"] else ("resumed",)))
    for event in reader.events(types=kinds, task=body["task"], after=opened.seq):
        if event.type == "resumed":
            part["state"] = "used" if part["state"] in ("open", "approved") else part["state"]
        elif event.type == "action.intended":
            if event.body.get("approval") == body["escalation"]:
                part["state"] = "used"
        elif event.body["escalation"] != body["escalation"]:
            continue
        elif event.type == "escalation.joined":
            part["joined_by"].append(
                {"session": event.body["session"], "action": event.body["action"], "seq": event.seq}
            )
        else:
            part["answer"] = _answer(reader, event)
            part["state"] = part["answer"]["state"]
    return part


def _answer(reader: LedgerReader, event: Event) -> Part:
    if event.type == "escalation.expired":
        state = "approved" if event.body["default"] == "approve" else "expired"
        return {
            "state": state,
            "by": "expiry",
            "uid": None,
            "via": None,
            "note": None,
            "at": iso(event.at),
            "seq": event.seq,
        }
    payload = reader.payload(event.seq)
    note = payload.get("note") if isinstance(payload, dict) else None
    return {
        "state": "approved" if event.body["answer"] == "approve" else "denied",
        "by": "person",
        "uid": event.body["uid"],
        "via": event.body["via"],
        "note": note or None,
        "at": iso(event.at),
        "seq": event.seq,
        "_at": event.at,
    }


class _Gathering:
    def __init__(self, reader: LedgerReader, session: str) -> None:
        self.reader = reader
        self.session = session
        self.steps: list[Part] = []
        self.by_action: dict[str, Part] = {}
        self.calls: list[Part] = []  # model calls since the last step
        self.account: Part = {
            "session": session,
            "compactions": [],
            "model_summaries": [],
            "contexts": [],
            "steps": self.steps,
            "postconditions": [],
            "notices": [],
        }

    def gather(self) -> Part:
        last = 0
        for event in self.reader.events(session=self.session):
            last = event.seq
            handle = getattr(self, "_" + event.type.replace(".", "_"), None)
            if handle is not None:
                handle(event, event.body)
        account = self.account
        account["last_seq"] = last
        account["calls_without_step"] = self.calls
        account.setdefault("status", "open")
        for step in self.steps:
            if step["kind"] == "action" and step["escalation"]:
                step["escalation"] |= question_of(self.reader, step["escalation"]["id"]) or {}
                self._later_attempts(step)
        self._slot()
        self._notices()
        return account

    def _payload(self, seq: int) -> tuple[Mapping[str, Any], bool]:
        """The event's payload as an object (empty where it has none), and whether it was erased."""
        payload = self.reader.payload(seq)
        if isinstance(payload, dict):
            return payload, False
        return {}, payload is None and self.reader.erased(seq)

    # -- one method for each type of event, named after it --------------------------------------------------------------

    def _session_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        payload, erased = self._payload(event.seq)
        self.account |= {
            "task": body["task"],
            "slot": {"id": body["slot"]},
            "planner": body["planner"],
            "model": body.get("model"),
            "bounds": dict(body["bounds"]),
            "task_digest": body["task_digest"],
            "policies": body["policies"],
            "fence": body["fence"],
            "resumes": body.get("resumes"),
            "answers": body.get("escalation"),
            "dry_run": bool(body.get("dry_run")),
            "instruction": payload.get("instruction"),
            "instruction_erased": erased,
            "opened_at": iso(event.at),
            "first_seq": event.seq,
            "_opened": event.at,
        }

    def _session_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        payload, erased = self._payload(event.seq)
        self.account |= {
            "status": body["status"],
            "reason": body["reason"],
            "used": {"steps": body["steps"], "tokens": body["tokens"], "cost_usd": body["cost_usd"]},
            "duration_us": body["duration_us"],
            "closed_at": iso(event.at),
            "saved": payload.get("saved"),
            "says": payload.get("says"),
            "closing_erased": erased,
            "closed_seq": event.seq,
            "_closed": event.at,
        }

    def _slot_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        self.account["slot"] |= {"outcome": body["outcome"], "kind": body["kind"], "closed_seq": event.seq}

    def _compaction_finished(self, event: Event, body: Mapping[str, Any]) -> None:
        keys = (
            "after",
            "until",
            "events",
            "records",
            "facts",
            "summaries",
            "tokens_before",
            "tokens_after",
            "duration_us",
        )
        part = {"ok": True, **{key: body[key] for key in keys}, "left_out": body.get("left_out"), "seq": event.seq}
        self.account["compactions"].append(part | {"ineffective": bool(body.get("ineffective"))})

    def _summary_made(self, event: Event, body: Mapping[str, Any]) -> None:
        keys = ("summary", "model", "tokens_before", "tokens_after", "untrusted")
        self.account["model_summaries"].append({"kept": True, **{key: body[key] for key in keys}, "seq": event.seq})

    def _summary_refused(self, event: Event, body: Mapping[str, Any]) -> None:
        why = self._payload(event.seq)[0].get("why") or []
        part = {"kept": False, "summary": body["summary"], "reason": body["reason"], "why": why, "seq": event.seq}
        self.account["model_summaries"].append(part)

    def _compaction_failed(self, event: Event, body: Mapping[str, Any]) -> None:
        self.account["compactions"].append({"ok": False, "reason": body["reason"], "seq": event.seq})

    def _context_assembled(self, event: Event, body: Mapping[str, Any]) -> None:
        payload, erased = self._payload(event.seq)
        self.account["contexts"].append(
            {
                **{key: body[key] for key in ("tokens", "budget", "factor", "digest")},
                "manifest": payload.get("manifest", []),
                "left_out": payload.get("left_out", []),
                "text": payload.get("text"),
                "erased": erased,
                "seq": event.seq,
            }
        )

    def _model_requested(self, event: Event, body: Mapping[str, Any]) -> None:
        keys = ("call", "model", "purpose", "prompt_tokens", "completion_cap", "reserved_tokens", "reserved_usd")
        self.calls.append({**{key: body[key] for key in keys}, "reply": None, "seq": event.seq, "_at": event.at})

    def _model_replied(self, event: Event, body: Mapping[str, Any]) -> None:
        every = [*self.calls, *(call for step in self.steps for call in step["calls"])]
        keys = ("status", "input_tokens", "output_tokens", "charged_tokens", "charged_usd", "error")
        for call in every:
            if call["call"] == body["call"]:
                call["reply"] = {key: body.get(key) for key in keys} | {"seq": event.seq}
                call["duration_us"] = event.at - call["_at"]

    def _step_rejected(self, event: Event, body: Mapping[str, Any]) -> None:
        payload, erased = self._payload(event.seq)
        self._add(
            {
                "step": body["step"],
                "kind": "rejected",
                "reason": body["reason"],
                "detail": payload.get("detail"),
                "erased": erased,
                "seq": event.seq,
                "seqs": [event.seq],
                "_at": event.at,
            }
        )

    def _action_proposed(self, event: Event, body: Mapping[str, Any]) -> None:
        self._add(self._proposal(event, body))

    def _proposal(self, event: Event, body: Mapping[str, Any]) -> Part:
        payload, erased = self._payload(event.seq)
        return {
            "step": body["step"],
            "kind": "action",
            "action": body["action"],
            "tool": body["tool"],
            "effect": body["effect"],
            "digest": body["digest"],
            "confidence": body["confidence"],
            "key": body.get("key"),
            "args": payload.get("args"),
            "provenance": payload.get("provenance", {}),
            "paths": payload.get("paths", {}),
            "cwd": payload.get("cwd"),
            "says": payload.get("says") or None,
            "erased": erased,
            "proposed_in": body["session"],
            "decisions": [],
            "escalation": None,
            "attempts": [],
            "checks": [],
            "seqs": [event.seq],
            "_at": event.at,
        }

    def _add(self, step: Part) -> None:
        step["calls"], self.calls = self.calls, []
        self.steps.append(step)
        if "action" in step:
            self.by_action[step["action"]] = step

    def _of(self, action: str) -> Part:
        """The step of the action; one that an earlier session proposed is fetched from there."""
        if action not in self.by_action:
            for event in self.reader.events(action=action, types=("action.proposed",)):
                step = self._proposal(event, event.body)
                self._add(step)
                for decided in self.reader.events(action=action, types=("action.decided",)):
                    if decided.body["session"] != self.session:
                        self._decision(step, decided)
                for asked in self.reader.events(action=action, types=("escalation.opened",)):
                    step["escalation"] = {"id": asked.body["escalation"], "joined": False}
        return self.by_action[action]

    def _action_decided(self, event: Event, body: Mapping[str, Any]) -> None:
        self._decision(self._of(body["action"]), event)

    def _decision(self, step: Part, event: Event) -> None:
        body = event.body
        named = {name: body.get(name) for name in ("decision", "reason", "policies", "grant", "shadow")}
        step["decisions"].append({**named, "rules": [dict(rule) for rule in body["rules"]], "seq": event.seq})
        step["seqs"].append(event.seq)

    def _escalation_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        if not body["action"]:  # about the task, not about a step
            return
        step = self._of(body["action"])
        step["escalation"] = {"id": body["escalation"], "joined": False}
        step["seqs"].append(event.seq)

    def _escalation_joined(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._of(body["action"])
        step["escalation"] = {"id": body["escalation"], "joined": True}
        step["seqs"].append(event.seq)

    def _action_intended(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._of(body["action"])
        step["attempts"].append(_attempt(event))
        step["seqs"].append(event.seq)

    def _action_ended(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._of(body["action"])
        _end(self.reader, step["attempts"], event)
        step["seqs"].append(event.seq)

    def _action_verified(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._of(body["action"])
        step["checks"].append({"verifier": body["verifier"], "passed": body["passed"], "seq": event.seq})
        step["seqs"].append(event.seq)

    def _postcondition_checked(self, event: Event, body: Mapping[str, Any]) -> None:
        payload, _ = self._payload(event.seq)
        self.account["postconditions"].append(
            {
                "index": body["index"],
                "kind": body["kind"],
                "passed": body["passed"],
                "condition": payload.get("condition"),
                "detail": payload.get("detail"),
                "seq": event.seq,
            }
        )

    # -- what stands outside the session's own events -------------------------------------------------------------------

    def _later_attempts(self, step: Part) -> None:
        """Attempts that another session made after a person's yes."""
        for event in self.reader.events(action=step["action"], types=("action.intended", "action.ended")):
            if event.body["session"] == self.session:
                continue
            if event.type == "action.intended":
                step["attempts"].append(_attempt(event))
            else:
                _end(self.reader, step["attempts"], event)

    def _slot(self) -> None:
        slot = self.account.get("slot")
        row = projections.slot(self.reader, slot["id"]) if slot is not None else None
        if slot is not None and row is not None:
            slot |= {
                "kind": row.kind,
                "due_at": iso(row.due),
                "cause": row.cause,
                "opened_seq": row.seq_opened,
                "outcome": row.outcome,
                "_due": row.due,
            }

    def _notices(self) -> None:
        """Notifications and alarms about this session or its questions."""
        about = {self.session, *(step["escalation"]["id"] for step in self.steps if step.get("escalation"))}
        if "first_seq" not in self.account:
            return
        until = self.account["last_seq"] + 1_000  # they follow within moments; the rest of the ledger need not be read
        notices = self.reader.events(
            types=("notification.sent", "alarm.raised"), after=self.account["first_seq"], until=until
        )
        for event in notices:
            if event.body.get("about") not in about:
                continue
            if event.type == "alarm.raised":
                payload, _ = self._payload(event.seq)
                notice = {"kind": "alarm", "code": event.body["code"], "text": payload.get("text")}
            else:
                keys = ("channel", "status", "error")
                notice = {"kind": "notification", **{key: event.body.get(key) for key in keys}}
            self.account["notices"].append({**notice, "about": event.body["about"], "seq": event.seq})


def _attempt(event: Event) -> Part:
    body = event.body
    return {
        "attempt": body["attempt"],
        "session": body["session"],
        "approval": body.get("approval"),
        "status": None,
        "intended_seq": event.seq,
        "intended_at": iso(event.at),
    }


def _end(reader: LedgerReader, attempts: list[Part], event: Event) -> None:
    """Write the outcome to its attempt; one that settles an unknown outcome keeps the fact that it had been unknown."""
    payload = reader.payload(event.seq)
    held = payload if isinstance(payload, dict) else {}
    body = event.body
    for attempt in reversed(attempts):
        if attempt["attempt"] == body["attempt"]:
            attempt |= {
                "was_unknown": attempt["status"] == "unknown",
                "status": body["status"],
                "duration_us": body["duration_us"],
                "result": held.get("result"),
                "error": held.get("error") or body.get("error"),
                "truncated": bool(held.get("truncated")),
                "undo": bool(body.get("undo")),
                "settled": bool(body.get("settles")),
                "erased": payload is None and reader.erased(event.seq),
                "ended_seq": event.seq,
            }
            return


def public(value: Any) -> Any:
    """The account without the fields that only the page uses (their names begin with `_`)."""
    if isinstance(value, dict):
        return {key: public(held) for key, held in value.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [public(held) for held in value]
    return value
