"""`perdure memory` as a person uses it: every sentence leads back to the ledger, also when its text has left memory or was
forgotten; what stopped is said and let go on; and what memory would not take is an error."""

import asyncio
import os

import pytest

from perdure.daemon.cli import memory
from perdure.memory.memory import Memory
from perdure.memory.store import Store
from perdure.state import events as e
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner

DAY = 86_400_000_000


def compact(place, *, keep_us=None, later=0):
    """Compact as the daemon does, `later` after the ledger's last event."""
    place.at += later
    with Owner.acquire(place.state) as owner:
        ledger = Ledger.open(place.state / "ledger.db", now=place._now, fence=owner.fence)

        async def once():
            memory = Memory.open(place.state, ledger=ledger, now=place._now, embedding="none", keep_us=keep_us)
            try:
                for _ in range(2):  # the second also reads the receipt, and with it how late it is
                    await memory.compact("log-triage", scope="log-triage")
            finally:
                await memory.close()

        asyncio.run(once())
        ledger.close()


def ended(place):
    """The record of the first action that ended, and the summary that tells of it."""
    event = next(each for each in place.json("ledger", "show", "1F1RST")["steps"] if each["tool"] == "list_files")
    record = f"r{event['seqs'][-1]}"
    return record, place.json("memory", "why", record)


def test_a_record_a_fact_and_a_summary_lead_to_the_ledger(answered):
    answered.call("memory", "correct", "web-1", "owner", "Ada")
    compact(answered)
    record, told = ended(answered)
    (found,) = told["records"]
    assert found["text_in"] == "memory"
    assert all(f"#{seq}" in answered.text("memory", "why", record) for seq in found["sources"])
    (summary,) = [each for each in told["in_summaries"] if each.startswith("session/")]  # its day may be over by now
    above = answered.json("memory", "why", summary)
    assert record in [each["record"] for each in above["records"]]
    assert f"[{record}]" in above["summary"]["text"]
    (fact,) = answered.json("memory", "facts")["facts"]
    assert "corrected" in answered.text("memory", "why", fact["id"] if "id" in fact else f"f{fact['source'][1:]}")


def test_what_is_corrected_or_forgotten_is_so_at_once_and_not_only_after_the_next_session(answered):
    compact(answered)
    record, told = ended(answered)
    words = told["records"][0]["text"]
    answered.call("memory", "correct", "web-1", "owner", "Ada")
    answered.call("memory", "correct", "web-1", "rack", "7")
    assert [fact["value"] for fact in answered.json("memory", "facts", "web-1", "owner")["facts"]] == ["Ada"]
    assert record in [each["record"] for each in answered.json("memory", "search", words)["records"]]
    answered.call("memory", "forget", record)
    fact = answered.json("memory", "facts", "web-1", "rack")["facts"][0]
    answered.call("memory", "forget", f"f{fact['source'][1:]}")
    assert record not in [each["record"] for each in answered.json("memory", "search", words)["records"]]
    assert [fact["value"] for fact in answered.json("memory", "facts")["facts"]] == ["Ada"]
    refused = answered.call("memory", "why", record)
    assert (refused.exit_code, "had it forgotten" in refused.stderr) == (1, True)


def test_search_says_of_each_record_how_the_fact_in_it_stands(answered):
    answered.call("memory", "correct", "web-1", "owner", "Ada")
    answered.call("memory", "correct", "web-1", "owner", "Eve")
    compact(answered)
    answered.call("memory", "correct", "web-2", "owner", "Ada")
    records = answered.json("memory", "search", "web-1 owner", "-n", "200")["records"]
    standings = {each["text"].partition(": ")[2]: each["standing"] for each in records}
    assert standings["web-1 — owner: Ada"] == "superseded"
    assert standings["web-1 — owner: Eve"] == "current"
    assert {each["standing"] for each in answered.json("memory", "search", "list_files")["records"]} == {None}
    (line,) = [line for line in answered.text("memory", "search", "web-1 owner").splitlines() if "superseded" in line]
    assert "no longer so" in line
    answered.call("memory", "correct", "web-1", "owner", "Bob")  # which no session has read yet
    again = answered.json("memory", "search", "web-1 owner")["records"]
    assert [each["standing"] for each in again if "Eve" in each["text"]] == ["superseded"]


def test_a_summary_does_not_tell_what_was_forgotten_since(answered):
    compact(answered)
    record, told = ended(answered)
    words = told["records"][0]["text"].partition(" succeeded")[0]
    (summary,) = [each for each in told["in_summaries"] if each.startswith("session/")]
    assert words in answered.text("memory", "why", summary)
    answered.call("memory", "forget", record)
    page = answered.text("memory", "why", summary)
    assert words not in page
    assert "next session" in page
    above = answered.json("memory", "why", summary)
    assert record not in [each["record"] for each in above["records"]] + above["summary"]["covers"]
    assert above["summary"]["text"] is None
    assert above["records"], "what nobody forgot is still told"
    compact(answered)
    made_again = answered.json("memory", "why", summary)
    assert f"[{made_again['records'][0]['record']}]" in made_again["summary"]["text"]
    assert words not in answered.text("memory", "why", summary)


def test_memory_that_is_gone_is_said_to_be_and_what_brings_it_back(parked, place_at, tmp_path):
    new = place_at(tmp_path / "new")
    new.write([])
    assert "no session has read the ledger into it" in new.call("memory", "search", "auth.log").stderr
    compact(parked)
    (parked.state / "memory.db").unlink()
    asked = parked.call("memory", "search", "auth.log")
    assert (asked.exit_code, "the ledger, from which it was made, still has everything" in asked.stderr) == (1, True)
    Store.open(parked.state / "memory.db", identity="x").close()  # as a daemon does at its start
    for command in (("search", "auth.log"), ("facts",)):
        assert "has read the ledger up to #0 of #" in parked.text("memory", *command)
    (parked.state / "memory.db").unlink()
    compact(parked)
    assert "begins again" not in parked.text("memory", "search", "auth.log")


def test_text_that_has_left_memory_is_told_by_the_ledger(answered):
    compact(answered)
    record, told = ended(answered)
    compact(answered, keep_us=45 * DAY, later=200 * DAY)
    _, cold = ended(answered)
    assert cold["records"] == [{**told["records"][0], "text_in": "ledger"}]
    assert "has left memory" in answered.text("memory", "why", record)
    assert answered.json("memory", "stats")["cold_records"] > 0
    assert answered.json("memory", "search", "auth.log")["records"] == []


def test_what_was_forgotten_says_who_and_where_the_ledger_has_it(answered):
    compact(answered)
    record, _ = ended(answered)
    answered.call("memory", "forget", record)
    compact(answered)
    result = answered.call("memory", "why", record)
    assert result.exit_code == 1
    assert f"(uid {os.getuid()})" in result.stderr
    assert f"perdure ledger show {record[1:]}" in result.stderr


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        (("forget", "r99999"), "no record"),
        (("forget", "nonsense"), "no record"),
        (("forget", "r1"), "no record"),
        (("forget", "f2"), "no record"),
        (("forget", "r" + "9" * 30), "no record"),
        (("why", "r" + "9" * 30), "none of this id"),
        (("correct", " ", "owner", "x"), "empty"),
        (("correct", "web-1", "owner", "x" * 4_001), "4,001 characters"),
        (("why", "r99999"), "none of this id"),
        (("why", "session/none"), "none of this id"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_to_do(answered, command, cause):
    compact(answered)
    result = answered.call("memory", *command)
    assert result.exit_code == 1, result.output
    assert cause in result.stderr
    assert "next:" in result.stderr


def test_stats_tell_what_there_is_and_what_it_takes(answered, monkeypatch):
    compact(answered)
    stats = answered.json("memory", "stats")
    assert stats["records"] > 0
    assert stats["bytes"]["memory.db"] > 0
    assert stats["bytes_per_1000_sessions"]["ledger.db"] == round(
        stats["bytes"]["ledger.db"] / stats["sessions"] * 1_000
    )
    assert stats["events_not_read_yet"] == 1  # its own receipt
    assert "per 1,000 sessions" not in answered.text("memory", "stats"), "two sessions tell nothing of a thousand"
    monkeypatch.setattr(memory, "SESSIONS_THAT_TELL", 2)
    assert "per 1,000 sessions" in answered.text("memory", "stats")


def test_status_says_that_memory_has_stopped_and_resume_lets_it_go_on(answered):
    answered.write([(e.CompactionStopped(what="compaction", passes=2, reason="disk is full"),)])
    assert "disk is full" in answered.json("status")["memory_stopped"]["compaction"]
    page = answered.text("status")
    assert "memory resume" in page
    assert answered.json("memory", "resume")["resumed"]
    assert answered.json("status")["memory_stopped"] == {}
    answered.write([(e.CompactionStopped(what="model-summaries", passes=2, reason="nonsense"),)])
    assert list(answered.json("status")["memory_stopped"]) == ["model-summaries"]
    compact(answered)
    assert list(answered.json("status")["memory_stopped"]) == ["model-summaries"]  # the receipts go on saying so
    answered.json("memory", "resume")
    assert answered.json("status")["memory_stopped"] == {}


def test_the_page_of_a_session_shows_what_the_model_summarised_and_what_it_did_not(parked, story):
    parked.write(
        [
            (
                e.SummaryMade(
                    session=story.FIRST, task=story.TASK, summary="day/2026-11-21/log-triage", call="C1", model="m:x",
                    tokens_before=900, tokens_after=120, untrusted=True, payload={"text": "## Done", "covers": ["r9"]},
                ),
                e.SummaryRefused(
                    session=story.FIRST, task=story.TASK, summary="week/2026-11-16/log-triage", call="C2", reason="checks",
                    payload={"why": ["headings are missing: Open"]},
                ),
            )
        ]
    )  # fmt: skip
    page = parked.text("ledger", "show")
    assert "day/2026-11-21/log-triage by m:x, of untrusted text too" in page
    assert "not by the model (checks)" in page
    assert "headings are missing: Open" in page
    assert [each["kept"] for each in parked.json("ledger", "show")["model_summaries"]] == [True, False]
    tail = parked.text("ledger", "tail")
    assert "900 → 120 tokens" in tail
    assert "the extractive one stays" in tail
