"""Erasing takes the text and the salt and leaves the proof."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from perdure.state import events as e
from perdure.state.ledger import LedgerRefused
from perdure.state.retention import erase, expire_payloads

SECRET = "the-customer-lives-at-number-nine"


def files_with(story, text):
    return [file.name for file in story.directory.iterdir() if text.encode() in file.read_bytes()]


def test_an_erased_payload_is_gone_from_every_file_and_the_chain_holds(story):
    ledger = story.create()
    ledger.commit(*(e.AlarmRaised(code=f"{n}", payload="other text " * 50) for n in range(100)))
    (event,) = ledger.commit(e.AlarmRaised(code="x", payload=SECRET))
    ledger.commit(*(e.AlarmRaised(code=f"{n}", payload="other text " * 50) for n in range(100)))
    assert files_with(story, SECRET)
    erase(ledger, [event.seq], reason="asked for", uid=1000)
    assert files_with(story, SECRET) == []
    assert ledger.reader.payload(event.seq) is None
    assert ledger.reader.erased(event.seq)
    assert not ledger.reader.erased(event.seq - 1)
    story.close()
    report = story.verify()
    assert report.findings == []
    assert report.erased == 1


def test_what_cannot_be_erased_is_refused_whole(story):
    ledger = story.create()
    (event,) = ledger.commit(e.AlarmRaised(code="x", payload="text"))
    for bad, rule in ((1, "no-payload"), (99, "no-such-event")):
        with pytest.raises(LedgerRefused) as info:
            erase(ledger, [event.seq, bad], reason="r")
        assert info.value.rule == rule
        assert ledger.reader.payload(event.seq) == "text"
    erase(ledger, [event.seq], reason="r")
    with pytest.raises(LedgerRefused):
        erase(ledger, [event.seq], reason="r")


def test_the_arguments_of_an_open_action_stay(story):
    ledger = story.create()
    session = story.session()
    action, question = story.ask(session)
    (proposed,) = ledger.reader.events(action=action, types=["action.proposed"])

    def refuse():
        with pytest.raises(LedgerRefused) as info:
            erase(ledger, [proposed.seq], reason="r")
        assert info.value.rule == "action-open"

    refuse()
    ledger.commit(story.answer(question))
    refuse()
    ledger.commit(story.intent(action, session, approval=question))
    refuse()
    ledger.commit(story.outcome(action, session, "unknown"))
    refuse()
    ledger.commit(story.outcome(action, session, settles=True))
    erase(ledger, [proposed.seq], reason="r")
    story.close()
    assert story.verify().ok


def test_model_traffic_expires_and_nothing_else(story):
    ledger = story.live()
    boundary = story.now()
    session = story.session("late")
    ledger.commit(
        e.ModelRequested(
            session=session,
            task="late",
            call="C2",
            model="m",
            purpose="propose",
            prompt_tokens=1,
            completion_cap=1,
            reserved_tokens=2,
            reserved_usd=0.0,
            payload="young",
        )
    )
    payloads = ledger.reader.rows("SELECT COUNT(*) FROM payloads")[0][0]
    assert expire_payloads(ledger, boundary) == 2
    assert expire_payloads(ledger, boundary) == 0
    assert ledger.reader.rows("SELECT COUNT(*) FROM payloads")[0][0] == payloads - 2
    assert expire_payloads(ledger, story.now()) == 0  # the young call is still open
    ledger.commit(
        e.ModelReplied(session=session, task="late", call="C2", status="crashed", charged_tokens=2, charged_usd=0.0)
    )
    assert expire_payloads(ledger, story.now()) == 1
    story.close()
    assert story.verify().ok


def test_a_returned_payload_is_named(story):
    ledger = story.create()
    (event,) = ledger.commit(e.AlarmRaised(code="x", payload="text"))
    row = ledger.reader.rows("SELECT * FROM payloads WHERE seq = ?", event.seq)[0]
    erase(ledger, [event.seq], reason="r")
    story.close()
    with contextlib.closing(sqlite3.connect(story.path)) as db, db:
        db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", row)
    assert story.kinds() == {"payload-returned"}
