"""Two passes of no use stop compaction, loudly, until a person lets it go on; memory stays as the last good one left it."""

import sqlite3

import pytest

from perdure.memory import compaction, passes
from perdure.memory.compaction import CompactionUnsuccessful
from perdure.memory.store import Store
from perdure.memory.summaries import Draft, Extractive
from perdure.state import events as e


def told(past, *types):
    return [event.body for event in past.ledger.reader.events(types=types)]


def full(*_args):
    raise sqlite3.OperationalError("database or disk is full")


async def fails(memory, words):
    with pytest.raises(CompactionUnsuccessful, match=words):
        await memory.compact("triage", scope="triage")


async def test_two_failures_in_a_row_stop_it_also_for_the_next_daemon_until_a_person_resumes(past, monkeypatch):
    past.session(past.action("read_file", {"path": "a"}, "first"))
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    past.session(past.action("read_file", {"path": "b"}, "second"))
    monkeypatch.setattr(Store, "put_summary", full)
    await fails(memory, "disk is full")
    assert passes.stopped(past.ledger.reader) is None
    await fails(memory, "disk is full")
    (stop,) = told(past, "compaction.stopped")
    assert (stop["what"], stop["passes"]) == ("compaction", 2)
    assert "disk is full" in stop["reason"]
    assert past.codes().count("compaction-stopped") == 1
    monkeypatch.undo()
    await fails(memory, r"stopped at ledger event #\d+.*perdure memory resume")
    await memory.close()
    memory = past.memory()
    await fails(memory, "perdure memory resume")
    assert len(told(past, "compaction.failed")) == 2  # it is not even tried
    assert await memory.recall("triage", "first")  # the last good state
    past.ledger.commit(e.CompactionResumed(uid=0))
    assert (await memory.compact("triage", scope="triage")).records == 2
    await memory.close()


async def test_one_good_pass_between_two_failures_is_no_reason_to_stop(past, monkeypatch):
    memory = past.memory()
    for _ in range(3):
        past.session(past.action("read_file", {"path": "a"}, "words"))
        monkeypatch.setattr(Store, "put_summary", full)
        await fails(memory, "disk is full")
        monkeypatch.undo()
        await memory.compact("triage", scope="triage")
    assert told(past, "compaction.stopped") == []
    await memory.close()


class Verbose(Extractive):
    """Makes more of less."""

    def summarise(self, records, tokens_max):
        return Draft(text="\n".join(record.text * 2 for record in records), covers=(records[0].id,), untrusted=False)


class Mute(Extractive):
    """Tells of nothing."""

    def summarise(self, records, tokens_max):
        return Draft(text="", covers=(), untrusted=False)


@pytest.mark.parametrize("summariser", [Verbose, Mute])
async def test_summaries_that_are_no_smaller_or_tell_of_nothing_stop_it(past, monkeypatch, summariser):
    monkeypatch.setattr(compaction, "Extractive", summariser)
    memory = past.memory()
    for _ in range(2):
        past.session(*(past.action("read_file", {"path": f"{n}"}, f"words of {n} " * 20) for n in range(6)))
        receipt = await memory.compact("triage", scope="triage")
        assert receipt.ineffective
    assert [body["what"] for body in told(past, "compaction.stopped")] == ["compaction"]
    await fails(memory, "perdure memory resume")
    await memory.close()


async def test_the_receipt_names_each_summary_with_what_was_left_out(past):
    past.session(*(past.action("read_file", {"path": f"{n}"}, f"some words {'abcdefghij'[n]} " * 12) for n in range(9)))
    memory = past.memory()
    receipt = await memory.compact("triage", scope="triage")
    assert receipt.tokens_before > receipt.tokens_after > 0
    assert receipt.left_out > 0
    (event,) = past.ledger.reader.events(types=["compaction.finished"])
    (made,) = past.ledger.reader.payload(event.seq)["summaries"]
    assert (made["records"], made["left_out"], made["made_by"]) == (10, receipt.left_out, "extractive")
    summary = memory._store.summary(made["summary"])
    assert len(summary.covers) == 10 - receipt.left_out
    assert memory._store.unwritten_receipts() == []
    await memory.close()


async def test_text_with_many_tokens_a_character_is_still_told(past):
    past.session(past.action("read_file", {"path": "a"}, "\U0001f9ff\u4e2d\u0e01" * 300), says="\u0e01\u0301" * 900)
    memory = past.memory()
    assert not (await memory.compact("triage", scope="triage")).ineffective
    (summary,) = memory._store.summaries("triage", "session")
    assert summary.covers
    await memory.close()


async def test_short_records_whose_summaries_are_longer_are_no_reason_to_stop(past):
    memory = past.memory()
    for _ in range(40):  # each day, one large summary among many that only name and date what they tell of
        past.session(past.action("read_file", {"path": "a"}, "x"), past.action("read_file", {"path": "b"}, "y"))
        past.at += 3_600_000_000 * 5
        assert not (await memory.compact("triage", scope="triage")).ineffective
    assert told(past, "compaction.stopped") == []
    await memory.close()
