"""What people see: the session's page, questions, status, tail."""

from __future__ import annotations


def test_session_page_tells_what_was_seen_proposed_decided_done_and_checked(parked, story):
    page = parked.text("ledger", "show", "1F1RST")
    for expected in (
        "log-triage session 1F1RST",
        "? parked",
        "waits for the answer to Q0EST1 (block_ip)",
        "scheduled, due 10:00:00",
        "3 of 10",
        "2,310 of 8,000 tokens",
        "pinned      2 items, 400 tokens",
        "left out    1 item, 4,000 tokens",
        "step 1  list_files",
        '"inbox/*.log"',
        "← instruction",
        "← tool:offenders",
        "policies/main.yaml:4",
        "ask a person: rule `blocks are for a person` asks",
        "policies/main.yaml:9",
        "✓ probe: the effect is there",
        "undo CT0002",
        "approve Q0EST1",
        "✓ holds",
        "file_exists",
        "2 done; 1 asked; 1 of 1 postcondition hold",
    ):
        assert expected in page, expected


def test_session_page_names_sequence_numbers_that_lead_to_the_events(parked):
    page = parked.text("ledger", "show")
    account = parked.json("ledger", "show")
    (write,) = [step for step in account["steps"] if step["tool"] == "write_file"]
    first, last = write["seqs"][0], write["seqs"][-1]
    assert f"#{first}–{last}" in page
    assert parked.json("ledger", "event", str(first))["type"] == "action.proposed"
    assert parked.json("ledger", "event", str(last))["type"] == "action.verified"


def test_session_page_cuts_long_arguments_and_full_does_not(parked):
    assert "201 lines, 1,013 characters" in parked.text("ledger", "show")
    # 1,013 characters and their escapes, folded into a column: nothing of them is missing.
    assert parked.text("ledger", "show", "--full").count(r"\nline") >= 150


def test_parked_page_shows_the_answer_and_who_gave_it_once_there_is_one(answered):
    page = answered.text("ledger", "show", "1F1RST")
    assert "approved by root (uid 0) over cli" in page
    assert "known attacker" in page
    assert "in session SEC0ND" in page
    assert "inbox show" not in page


def test_resumed_page_shows_what_was_approved_and_where_it_was_asked(answered):
    page = answered.text("ledger", "show", "SEC0ND")
    for expected in (
        "session 1F1RST, after the answer to Q0EST1",
        "which asked for it",
        "approved by the answer to Q0EST1",
        "blocked 203.0.113.9",
    ):
        assert expected in page, expected


def test_last_session_is_shown_where_none_is_named(answered):
    assert "session SEC0ND" in answered.text("ledger", "show")


def test_an_erased_payload_shows_as_erased(parked, story):
    from perdure.state.ledger import Ledger
    from perdure.state.ownership import Owner
    from perdure.state.retention import erase

    seq = parked.json("ledger", "show")["steps"][0]["seqs"][0]
    with (
        Owner.acquire(parked.state) as owner,
        Ledger.open(parked.state / "ledger.db", now=parked._now, fence=owner.fence) as ledger,
    ):
        erase(ledger, [seq], reason="a person's name")
    page = parked.text("ledger", "show")
    assert "(erased)" in page
    assert "inbox/*.log" not in page
    assert parked.json("ledger", "show")["steps"][0]["erased"] is True


def test_question_shows_exactly_what_would_run_and_how_to_answer(parked):
    page = parked.text("inbox", "show", "Q0EST1")
    for expected in (
        "block_ip",
        'ip  "203.0.113.9"  ← tool:offenders + instruction',
        '["/usr/sbin/nft", "add", "203.0.113.9"]',
        "blocks are for a person",
        "policies/main.yaml:9",
        "in 11 h 51 min",
        "deny: nothing runs",
        "approve Q0EST1",
        "deny Q0EST1",
        "sha256:" + "cd" * 32,
    ):
        assert expected in page, expected


def test_question_past_its_time_offers_no_answer(parked, story):
    result = parked.call("inbox", "show", "Q0EST1", now=story.START + 13 * story.HOUR)
    assert "its time is up" in result.stdout
    assert "approve Q0EST1" not in result.stdout


def test_inbox_lists_open_questions_and_with_all_the_answered_ones(parked, story):
    assert "block_ip" in parked.text("inbox")
    parked.write(story.the_answer_and_after())
    assert "No questions are open" in parked.text("inbox")
    page = parked.text("inbox", "--all")
    assert "used" in page
    assert " approve " not in page  # none of them can be answered any more


def test_inbox_tells_a_question_whose_time_is_up_from_an_open_one(parked, story):
    result = parked.call("inbox", "--all", now=story.START + 13 * story.HOUR)
    assert "overdue" in result.stdout
    assert " approve " not in result.stdout


def test_status_shows_daemon_next_slot_questions_and_sessions(parked):
    page = parked.text("status")
    for expected in ("not running", "log-triage", "11:00:00", "in 51 min", "1 question waits", "Q0EST1", "? parked"):
        assert expected in page, expected


def test_status_of_a_fresh_workspace_says_what_to_do(empty):
    page = empty.text("status")
    assert "nothing has run" in page
    assert "run" in page


def test_status_names_pauses_and_the_stop_file(parked, story):
    from perdure.state.events import Paused

    parked.write([(Paused(task=story.TASK, by="uid 0", reason="holidays"),)])
    (parked.root / "STOP").touch()
    page = parked.text("status")
    assert "holidays" in page
    assert "STOP" in page


def test_status_sees_a_running_owner(parked):
    import os

    from perdure.state.ownership import Owner

    with Owner.acquire(parked.state):
        assert f"pid {os.getpid()}" in parked.text("status")
        assert parked.json("status")["daemon"]["running"] is True


def test_tail_prints_one_line_for_each_event(parked):
    lines = parked.text("ledger", "tail", "-n", "100").splitlines()
    assert len(lines) == parked.json("status")["head"]
    assert "asks a person about block_ip: question Q0EST1" in "\n".join(lines)


def test_every_event_type_has_words():
    from perdure.daemon.cli.event_lines import WORDS
    from perdure.state import events

    types = {
        kind.type
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, events.Draft) and hasattr(kind, "type")
    }
    assert types == set(WORDS)


def test_search_finds_text_in_payloads_as_people_saw_it(parked):
    page = parked.text("ledger", "search", "tool:OFFENDERS")
    assert "step 3 proposes block_ip" in page
    assert parked.call("ledger", "search", "no such words").exit_code == 1


def test_schedule_shows_what_comes_and_what_was(parked):
    page = parked.text("schedule", "show")
    assert "expected" in page
    assert "ran" in page
    assert "session 1F1RST" in page


def test_context_lists_every_item_and_what_was_left_out(parked):
    page = parked.text("context", "show")
    for expected in ("instruction", "recalled: rank 1", "left out: 1 item", "does not fit"):
        assert expected in page, expected
