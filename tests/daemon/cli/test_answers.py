"""Answers and steering through the one real way: the workspace's lock where no daemon runs, its socket where one does."""

from __future__ import annotations

import pytest

FAR = 4_102_444_800 * 1_000_000  # the year 2100: these commands go by the machine's clock


@pytest.fixture
def asking(empty, story):
    empty.write(story.until_the_question(expires=FAR))
    return empty


def test_approve_records_who_and_why_and_opens_the_slot_that_does_it(asking):
    text = asking.text("approve", "Q0EST1", "--note", "known attacker")
    assert "Approved" in text
    assert "resume" in text
    question = asking.json("inbox", "show", "Q0EST1")
    assert question["state"] == "approved"
    assert question["answer"]["note"] == "known attacker"
    import os

    assert question["answer"]["uid"] == os.getuid()


def test_an_answered_question_cannot_be_answered_again(asking):
    assert asking.call("deny", "Q0EST1").exit_code == 0
    again = asking.call("approve", "Q0EST1")
    assert again.exit_code == 1
    assert "already denied" in again.stderr


def test_an_expired_question_cannot_be_answered(empty, story):
    empty.write(story.until_the_question(expires=story.START + story.HOUR))
    result = empty.call("approve", "Q0EST1")
    assert result.exit_code == 1
    assert "expired" in result.stderr


def test_always_leaves_a_grant_that_can_be_revoked(asking):
    asking.call("approve", "Q0EST1", "--always", "--note", "every time")
    page = asking.text("grants", "list")
    assert 'ip="203.0.113.9"' in page
    (grant,) = asking.json("grants", "list")["grants"]
    assert grant["rule"] == "blocks are for a person"
    assert asking.call("grants", "revoke", grant["grant"][-6:]).exit_code == 0
    assert asking.json("grants", "list")["grants"] == []
    assert len(asking.json("grants", "list", "--all")["grants"]) == 1


def test_pause_and_resume_show_in_status(asking, story):
    assert "perdure" in asking.text("pause", story.TASK, "--reason", "holidays")
    assert "holidays" in asking.text("status")
    asking.text("resume", story.TASK)
    assert "holidays" not in asking.text("status")


@pytest.mark.parametrize(
    "command",
    [
        ("inbox",), ("session", "list"), ("grants", "list"), ("memory", "facts"), ("memory", "pin", "never on Sundays"),
        ("memory", "correct", "the door", "is", "open"), ("report", "calibration"),
    ],
)  # fmt: skip
def test_a_misspelt_task_is_refused_wherever_one_is_named(asking, command):
    before = asking.json("ledger", "tail", "-n", "1")
    result = asking.call(*command, "--task", "log-traige")
    assert result.exit_code == 1
    assert "Tasks here: log-triage" in result.stderr
    assert asking.json("ledger", "tail", "-n", "1") == before


def test_a_task_that_no_daemon_has_loaded_yet_may_be_named(asking):
    (asking.root / "tasks").mkdir(exist_ok=True)
    (asking.root / "tasks/new.md").write_text("---\nname: new\n---\n")
    assert asking.json("memory", "pin", "never on Sundays", "--task", "new")["pin"]


def test_a_pause_of_a_misspelt_task_is_refused(asking):
    result = asking.call("pause", "log-traige")
    assert result.exit_code == 1
    assert "log-triage" in result.stderr
