"""One ledger event in one line for people: number, time, task, and what happened in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from perdure.daemon.cli.page_parts import DECISION, OUTCOME, status_text, who
from perdure.daemon.cli.terminal import exact, line
from perdure.daemon.cli.words import count, dollars, duration, iso, moment, short, short_digest, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import tzinfo

    from perdure.state.events import Event

SLOT_STYLE = {"ran": "good", "late": "warn", "missed": "bad", "refused": "bad"}


def event_line(event: Event, *, now: int, zone: tzinfo | None) -> Text:
    """`#17 10:00:02 log-triage 1F1RST  auto: …`."""
    body = event.body
    words = line((f"#{event.seq:<6}", "place"), (moment(event.at, zone, now) + "  ", "faint"))
    if task := body.get("task"):
        words.append_text(line((f"{task} ", "name")))
    if session := body.get("session"):
        words.append_text(line((f"{short(session)} ", "id")))
    describe = WORDS.get(event.type)
    words.append("· ", "faint")
    words.append_text(describe(body) if describe else line(f"{event.type} {exact(dict(body))}"))
    return words


def event_json(event: Event, payload: Any, *, erased: bool, with_payload: bool = True) -> dict[str, Any]:
    """The event as JSON (docs/json.md, `perdure/event/1`)."""
    value = {
        "format": "perdure/event/1",
        "seq": event.seq,
        "at": iso(event.at),
        "at_us": event.at,
        "type": event.type,
        "body": dict(event.body),
        "payload_hash": event.payload_hash,
        "hash": event.hash,
    }
    if with_payload:
        value |= {"payload": payload, "erased": erased}
    return value


def _decided(body: Mapping[str, Any]) -> Text:
    words, style = DECISION.get(body["decision"], (body["decision"], ""))
    rules = ", ".join(f"{rule['name']} ({rule['file']}:{rule['line']})" for rule in body["rules"])
    would_be, its_style = DECISION.get(body.get("shadow") or "", ("", ""))
    shadow = [("; shadow rules would: ", "faint"), (would_be, its_style)] if would_be else []
    return line((words, style), f": {shorten(body['reason'])}", (f"  {rules}" if rules else "", "place"), *shadow)


def _ended(body: Mapping[str, Any]) -> Text:
    sign, style = OUTCOME.get(body["status"], (str(body["status"]), ""))
    text = line(
        (f"{sign} ", style),
        (body["tool"], "name"),
        f" {body['status']}",
        (f" in {duration(body['duration_us'])}", "faint"),
    )
    if body.get("settles"):
        text.append(" (settles an unknown outcome)", "warn")
    return text.append_text(line(f": {body['error']}" if body.get("error") else ""))


def _session_closed(body: Mapping[str, Any]) -> Text:
    text = line("session closed: ")
    text.append_text(status_text(body["status"]))
    used = f", {count(body['steps'], 'step')}, {body['tokens']:,} tokens, {dollars(body['cost_usd'])}"
    used += f", {duration(body['duration_us'])}"
    return text.append_text(line(f" ({shorten(body['reason'])})", (used, "faint")))


def _slot_closed(body: Mapping[str, Any]) -> Text:
    many = f" for {count(body['count'], 'firing')}" if body.get("count", 1) > 1 else ""
    rule = f" by {body['rule']}" if body.get("rule") else ""
    return line(f"slot {body['slot']} ", (body["outcome"], SLOT_STYLE.get(body["outcome"], "")), f"{many}{rule}")


def _notified(body: Mapping[str, Any]) -> Text:
    style = "good" if body["status"] == "delivered" else "bad"
    error = f": {body['error']}" if body.get("error") else ""
    return line(f"told a person over {body['channel']} about {short(body['about'])}: ", (body["status"], style), error)


def _answered(body: Mapping[str, Any]) -> Text:
    style = "good" if body["answer"] == "approve" else "bad"
    name = {"approve": "approved", "deny": "denied"}.get(body["answer"], body["answer"])
    return line(
        "question ", (short(body["escalation"]), "id"), " ", (name, style), f" by {who(body['uid'])} over {body['via']}"
    )


def _replied(body: Mapping[str, Any]) -> Text:
    style = "good" if body["status"] == "replied" else "bad"
    cost = f", {dollars(body['charged_usd'])}" if body["charged_usd"] else ""
    return line(
        "model ",
        (body["status"], style),
        f", charged {body['charged_tokens']:,} tokens{cost}",
        f" {body.get('error') or ''}",
    )


def _checked(body: Mapping[str, Any]) -> Text:
    sign, style = ("✓ holds", "good") if body["passed"] else ("✗ fails", "bad")
    return line(f"postcondition {body['index'] + 1} ({body['kind']}) ", (sign, style))


def _verified(body: Mapping[str, Any]) -> Text:
    sign, style = ("✓ passed", "good") if body["passed"] else ("✗ failed", "bad")
    return line(f"check by {body['verifier']} of {short(body['action'])}: ", (sign, style))


def _pin(word: str) -> Callable[[Mapping[str, Any]], Text]:
    return lambda body: line(
        f"{word} ", (short(str(body.get("pin") or body.get("record") or "")), "id"), f" by {who(body['uid'])}"
    )


WORDS: Mapping[str, Callable[[Mapping[str, Any]], Text]] = {
    "ledger.opened": lambda b: line(
        f"ledger opened, epoch {b['epoch']}, schema {b['schema']}, by version {b['version']}"
    ),
    "daemon.started": lambda b: line(
        ("daemon started", "good"), f", pid {b['pid']} on {b['host']}, version {b['version']}"
    ),
    "daemon.stopped": lambda b: line(("daemon stopped", "warn"), f": {b['reason']}"),
    "configuration.loaded": lambda b: line(
        f"{b['kind']} in force: {short_digest(b['digest'])}, {count(len(b['files']), 'file')}"
    ),
    "configuration.rejected": lambda b: line(
        ("broken edit", "bad"),
        f" of {b['kind']}: {count(b['problems'], 'problem')}; the last good version stays in force",
    ),
    "task.loaded": lambda b: line(f"task in force: {short_digest(b['digest'])}"),
    "task.removed": lambda _: line(("task removed", "warn")),
    "paused": lambda b: line(
        ("paused", "warn"), "" if b.get("task") else " everything", f" by {b['by']}: {b['reason']}"
    ),
    "resumed": lambda b: line(("resumed", "good"), "" if b.get("task") else " everything", f" by {b['by']}"),
    "alarm.raised": lambda b: line(
        (f"alarm: {b['code']}", "bad"), f" about {short(b['about'])}" if b.get("about") else ""
    ),
    "notification.sent": _notified,
    "slot.opened": lambda b: line(
        f"slot due: {b['slot']}", f", because of {short(b['cause'])}" if b.get("cause") else ""
    ),
    "slot.closed": _slot_closed,
    "session.opened": lambda b: line("session opened", f", resumes {short(b['resumes'])}" if b.get("resumes") else ""),
    "session.closed": _session_closed,
    "compaction.finished": lambda b: line(
        f"compacted {count(b['events'], 'event')}; summaries: {b['tokens_before']:,} → {b['tokens_after']:,} tokens",
        (" INEFFECTIVE" if b.get("ineffective") else "", "bad"),
        (f" in {duration(b['duration_us'])}", "faint"),
    ),
    "compaction.failed": lambda b: line(("compaction failed", "bad"), f": {b['reason']}"),
    "compaction.stopped": lambda b: line(
        ("compaction stopped" if b["what"] == "compaction" else "model summaries stopped", "bad"),
        f" after {count(b['passes'], 'pass', 'passes')} of no use: {b['reason']}",
    ),
    "compaction.resumed": lambda b: line(("compaction goes on", "good"), f", by {who(b['uid'])}"),
    "summary.made": lambda b: line(
        f"{b['model']} summarised {b['summary']}: {b['tokens_before']:,} → {b['tokens_after']:,} tokens"
    ),
    "summary.refused": lambda b: line(
        ("no model's summary", "warn"), f" of {b['summary']}: {b['reason']}; the extractive one stays"
    ),
    "context.assembled": lambda b: line(f"context of {b['tokens']:,} of {b['budget']:,} tokens"),
    "model.requested": lambda b: line(
        f"asked {b['model']} to {b['purpose']}, reserved {b['reserved_tokens']:,} tokens"
    ),
    "model.replied": _replied,
    "step.rejected": lambda b: line(f"step {b['step']} ", ("is no action", "bad"), f": {b['reason']}"),
    "action.proposed": lambda b: line(
        f"step {b['step']} proposes ", (b["tool"], "name"), (f" {short(b['action'])}", "id")
    ),
    "action.decided": _decided,
    "action.intended": lambda b: line(
        "intends ", (b["tool"], "name"), f", attempt {b['attempt']}" if b["attempt"] > 1 else ""
    ),
    "action.ended": _ended,
    "action.verified": _verified,
    "postcondition.checked": _checked,
    "escalation.opened": lambda b: line(
        ("asks a person", "ask"), f" about {b['tool']}: question ", (short(b["escalation"]), "id")
    ),
    "escalation.joined": lambda b: line("joins question ", (short(b["escalation"]), "id")),
    "escalation.answered": _answered,
    "escalation.expired": lambda b: line(("question expired", "warn"), f" {short(b['escalation'])}: {b['default']}"),
    "grant.given": lambda b: line("standing grant ", (short(b["grant"]), "id"), f" for {b['tool']} by {who(b['uid'])}"),
    "grant.revoked": lambda b: line("standing grant ", (short(b["grant"]), "id"), f" revoked by {who(b['uid'])}"),
    "memory.pinned": _pin("pinned"),
    "memory.unpinned": _pin("unpinned"),
    "memory.corrected": lambda b: line(f"fact corrected by {who(b['uid'])}"),
    "memory.forgotten": _pin("forgot"),
    "mcp.server-started": lambda b: line(
        ("server ", ""),
        (b["server"], "name"),
        f" answers with {count(b['tools'], 'tool')}",
        (f"  {b.get('says') or ''}", "faint"),
    ),
    "mcp.server-ended": lambda b: line(("server ended", "bad"), f": {b['server']}: {b['reason']}"),
    "mcp.tool-listed": lambda b: line(
        f"server {b['server']} lists ", (b["tool"], "name"), f" as {short_digest(b['hash'])}"
    ),
    "mcp.tool-gone": lambda b: line(("tool gone", "warn"), f": server {b['server']} lists {b['tool']} no more"),
    "mcp.tool-accepted": lambda b: line(
        "tool ", (b["tool"], "name"), f" accepted by {who(b['uid'])}: {short_digest(b['hash'])}"
    ),
    "mcp.refused": lambda b: line(
        ("refused", "warn"), f" what server {b['server']} asked for: {b['what']} ({b['reason']})"
    ),
    "context.shortened": lambda b: line(
        f"shortened {count(b['shortened'], 'earlier result')}, dropped {b['dropped']}: {b['prompt_tokens']:,} tokens in the prompt"
    ),
    "tokens.drifted": lambda b: line(
        ("token counts drifted", "warn"),
        f": {b['model']} says {b['reported']:,}, we counted {b['counted']:,}; factor {b['factor']:g} from now on",
    ),
    "provider.circuit": lambda b: line(
        ("provider left alone", "bad") if b["state"] == "open" else ("provider asked again", "good"),
        f": {b['model']}, {count(b['failures'], 'failure')} in a row",
    ),
    "vote.held": lambda b: line(
        ("vote won" if b["won"] else "vote without a winner", "good" if b["won"] else "ask"),
        f": ahead by {b['margin']} (asked for {b['ahead_by']}) after {count(b['draws'], 'draw')} of {b['draws_max']}",
    ),
    "payload.erased": lambda b: line(f"payload of #{b['erased']} erased: {b['reason']}"),
}
