"""What a person was to be told when a crash came between: told at the next start. Each message is recorded once it has been
sent, so it is sent at least once, and again only where the crash came before the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from perdure.daemon.clock import iso
from perdure.state import projections

if TYPE_CHECKING:
    from perdure.daemon.config import NotifyAbout
    from perdure.daemon.runtime import Runtime
    from perdure.state.events import Event
    from perdure.state.reading import LedgerReader

LOOK_BACK_EVENTS = 5_000  # a message is sent right after its event, so what was lost is near the ledger's end
TOLD_BY_QUESTION = "breaker"  # the code of the alarm whose question tells of it


class Untold(NamedTuple):
    """One message that nobody was sent."""

    title: str
    text: str
    kind: NotifyAbout
    at: int


async def tell_of_untold_endings(runtime: Runtime) -> int:
    """Tell of failed sessions, refused slots and alarms of which no attempt to tell is recorded; returns how many."""
    untold = untold_endings(runtime.ledger.reader, runtime.found)
    for about, message in untold.items():
        text = f"{message.text}\n(This was at {iso(message.at)}; the daemon ended before it could tell.)"
        await runtime.notifier.notify(about, message.title, text, kind=message.kind)
    return len(untold)


def untold_endings(reader: LedgerReader, found: int) -> dict[str, Untold]:
    """The messages by what they are about, oldest first, of events up to `found`: what comes after them this process tells."""
    types = ("session.closed", "slot.closed", "alarm.raised", "notification.sent")
    untold: dict[str, Untold] = {}
    for event in reader.events(after=max(0, found - LOOK_BACK_EVENTS), types=types):
        if event.type == "notification.sent":
            untold.pop(event.body["about"], None)
        elif event.seq <= found and (told := _message(reader, event)) is not None:
            untold[told[0]] = told[1]
    return untold


def _message(reader: LedgerReader, event: Event) -> tuple[str, Untold] | None:
    """What a person is to be told of this event, if anything: (about, message)."""
    body = event.body
    match event.type:
        case "session.closed" if body["status"] in ("failed", "limited"):
            row = projections.session(reader, body["session"])
            if row is None or row.planner == "person":  # whoever gave the command saw how it ended
                return None
            title = f"{body['task']}: session {body['status']}"
            return body["session"], Untold(title, body["reason"], "failed", event.at)
        case "slot.closed" if body["outcome"] == "refused":
            return body["slot"], Untold(f"{body['task']}: refused", body.get("rule", ""), "refused", event.at)
        case "slot.closed" if body["outcome"] == "skipped" and body["kind"] == "resume":
            title = f"{body['task']}: an answer without effect"
            return body["slot"], Untold(title, body.get("rule", ""), "failed", event.at)
        case "alarm.raised" if body["code"] != TOLD_BY_QUESTION:
            payload = reader.payload(event.seq)
            text = str(payload["text"]) if isinstance(payload, dict) and "text" in payload else "its text was erased"
            return body.get("about") or body["code"], Untold(body["code"].replace("-", " "), text, "alarm", event.at)
    return None
