from __future__ import annotations

import inspect
import logging
from typing import Any

from perdure.daemon.event_log import level_of, tell
from perdure.state import events
from perdure.state.events import Event


def event(type_: str, **body: Any) -> Event:
    return Event(7, 0, type_, body, None, "sha256:0")


def test_every_failure_is_a_log_line() -> None:
    for type_, field, word in [
        ("session.closed", "status", "failed"),
        ("session.closed", "status", "interrupted"),
        ("slot.closed", "outcome", "refused"),
        ("slot.closed", "outcome", "missed"),
        ("action.ended", "status", "unknown"),
        ("action.ended", "status", "failed"),
        ("postcondition.checked", "passed", False),
        ("notification.sent", "status", "failed"),
        ("model.replied", "status", "timeout"),
    ]:
        assert (level_of(event(type_, **{field: word})) or 0) >= logging.WARNING, (type_, word)
    for type_ in ("alarm.raised", "configuration.rejected", "compaction.failed", "escalation.opened"):
        assert (level_of(event(type_)) or 0) >= logging.WARNING, type_


def test_what_goes_well_action_by_action_is_for_the_ledger_alone() -> None:
    assert level_of(event("action.ended", status="succeeded")) is None
    assert level_of(event("action.proposed")) is None


def test_the_types_that_it_knows_exist() -> None:
    from perdure.daemon import event_log

    known = {
        each.type
        for each in vars(events).values()
        if inspect.isclass(each) and hasattr(each, "type") and each is not events.Draft and each is not Event
    }
    assert set(event_log._ALWAYS) | set(event_log._BY_OUTCOME) <= known


def test_a_line_carries_the_facts_and_no_text() -> None:
    said: list[tuple[int, str, dict[str, Any]]] = []
    tell(
        [
            event("session.closed", session="S", task="t", status="failed", reason="loop"),
            event("action.proposed", task="t"),
        ],
        lambda level, what, **facts: said.append((level, what, facts)),
    )
    assert said == [
        (logging.ERROR, "session.closed", {"seq": 7, "session": "S", "task": "t", "status": "failed", "reason": "loop"})
    ]
