"""The live view: events become lines that a person likes to read."""

from __future__ import annotations

import dataclasses
import io
from zoneinfo import ZoneInfo

import pytest

from perdure.daemon.cli.live import LiveView, brief_arguments
from perdure.daemon.cli.terminal import console_for
from perdure.state import events
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner


def played(place, commits, stream=None):
    """The view's output while these commits are written to a real ledger that it subscribes to."""
    out = stream or io.StringIO()
    place.state.mkdir()
    with Owner.acquire(place.state) as owner:
        Ledger.create(place.state / "ledger.db", now=place._now, workspace="test").close()
        with Ledger.open(place.state / "ledger.db", now=place._now, fence=owner.fence) as ledger:
            view = LiveView(
                console_for(out, colour=False),
                zone=ZoneInfo("UTC"),
                payload=ledger.reader.payload,
                command="perdure -w here",
            )
            ledger.subscribe(view)
            for drafts in commits:
                ledger.commit(*drafts)
            view.close()
    return out.getvalue()


def test_every_step_is_one_line_with_decision_rule_and_duration(empty, story):
    text = played(empty, story.until_the_question())
    lines = text.splitlines()
    (listed,) = [row for row in lines if "list_files" in row]
    for expected in ("log-triage 1F1RST", " 1 list_files", 'pattern="inbox/*.log"', "auto by reports", "✓ 3 ms"):
        assert expected in listed, expected
    (written,) = [row for row in lines if "write_file" in row]
    assert 'path="reports/2026-11-22.md" text=(1,013 characters)' in written


def test_a_question_stands_out_with_the_commands_that_answer_it(empty, story):
    text = played(empty, story.until_the_question())
    for expected in (
        "? asks a person",
        "question Q0EST1",
        "perdure -w here approve Q0EST1",
        "perdure -w here deny Q0EST1",
        "then deny",
    ):
        assert expected in text, expected


def test_the_end_says_status_and_what_was_used(empty, story):
    text = played(empty, [*story.until_the_question(), *story.the_answer_and_after()])
    for expected in (
        "? parked  waits for the answer to Q0EST1",
        "3 of 10 steps · 0 of 120,000 tokens · 1.9 s",
        "✓ approved: question Q0EST1",
        "resumes 1F1RST after the answer to Q0EST1",
        "block_ip  approved by the answer to Q0EST1  ✓ 3 ms",
        "✓ succeeded",
    ):
        assert expected in text, expected


def test_failures_and_refusals_are_shown(empty, story):
    commits = story.until_the_question()[:4]
    commits += [
        (
            story.proposed(story.LIST, 1, "list_files", "read", {"pattern": "*"}, {"pattern": ["model"]}),
            story.decided(
                story.LIST, "deny", story.RULE_REPORTS | {"decide": "deny", "name": "never"}, reason="denied by 'never'"
            ),
        ),
        (
            story.proposed(story.WRITE, 2, "write_file", "idempotent", {"path": "a"}, {"path": ["model"]}),
            story.decided(story.WRITE, "auto", story.RULE_REPORTS, reason="allowed"),
            story.intended(story.WRITE, "write_file", "idempotent"),
        ),
        (story.ended(story.WRITE, "write_file", None, status="failed", error="disk full"),),
    ]
    text = played(empty, commits)
    assert "✗ denied by never" in text
    assert "disk full" in text


def test_a_dry_run_shows_what_was_decided_and_not_done(empty, story):
    opening = [
        tuple(dataclasses.replace(draft, dry_run=True) if draft.type == "session.opened" else draft for draft in drafts)
        for drafts in story.until_the_question()[:4]
    ]
    ask = dict(story.RULE_REPORTS, decide="escalate", name="writing is for a person")
    commits = [
        *opening,
        (
            story.proposed(story.LIST, 1, "append_file", "probeable", {"path": "a"}, {"path": ["instruction"]}),
            story.decided(story.LIST, "auto", story.RULE_REPORTS, reason="allowed"),
        ),
        (
            story.proposed(story.WRITE, 2, "write_file", "idempotent", {"path": "b"}, {"path": ["instruction"]}),
            story.decided(story.WRITE, "escalate", ask, reason="escalated"),
        ),
    ]
    text = played(empty, commits)
    assert 'append_file path="a"  auto by reports  not done' in text
    assert 'write_file path="b"  ? would ask a person (writing is for a person)' in text


def test_a_held_slot_names_its_question_as_people_do(empty, story):
    due = story.START + story.HOUR
    slot = f"log-triage/scheduled/{due}"
    held = events.SlotClosed(
        slot=slot,
        task=story.TASK,
        kind="scheduled",
        due=due,
        outcome="held",
        rule=f"waits for the answer to {story.QUESTION}",
    )
    text = played(empty, [*story.until_the_question(), (held,)])
    assert "log-triage held waits for the answer to Q0EST1" in text


def test_a_refusal_that_stands_is_told_as_a_sentence(empty, story):
    rule = dict(story.RULE_REPORTS, decide="deny", name=f"a person refused this ({story.QUESTION})", file="ledger")
    commits = [
        *story.until_the_question()[:4],
        (
            story.proposed(story.LIST, 1, "block_ip", "probeable", {"ip": "203.0.113.9"}, {"ip": ["model"]}),
            story.decided(story.LIST, "deny", rule, reason="denied"),
        ),
    ]
    assert "✗ denied (a person refused this (Q0EST1))" in played(empty, commits)


def test_a_terminal_that_goes_away_ends_the_view_and_not_the_daemon(empty, story):
    writes = []

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            raise BrokenPipeError

    played(empty, story.until_the_question(), Gone())
    assert len(writes) == 1  # it was tried, and given up for good


@pytest.mark.parametrize(
    "args", [{}, {"text": "x" * 10_000}, {"path": "a" * 200}, {"a": 1, "b": {"c": [1, 2]}, "path": "p"}]
)
def test_brief_arguments_are_brief(args):
    assert len(brief_arguments(args)) < 150
