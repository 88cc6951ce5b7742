"""Writing: durable, chained, append-only, grouped by tick, redacted and bounded."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import pytest

from perdure.errors import PerdureError
from perdure.state import chain
from perdure.state import events as e
from perdure.state.ledger import Ledger, LedgerReader, LedgerRefused, LedgerUnwritable


def alarm(code: str, **fields) -> e.AlarmRaised:
    return e.AlarmRaised(code=code, **fields)


def test_a_new_ledger_begins_with_its_opening(story):
    ledger = story.create()
    (first,) = ledger.reader.events()
    assert (first.seq, first.type, first.body["epoch"], first.body["workspace"]) == (1, "ledger.opened", 1, "story")
    assert ledger.head.seq == 1
    assert ledger.head.hash == first.hash


def test_an_existing_ledger_is_never_recreated(story):
    story.create().close()
    with pytest.raises(PerdureError, match="nothing is overwritten"):
        story.create()
    story.path.unlink()
    with pytest.raises(PerdureError, match="perdure restore"):  # the anchor remembers
        story.create()
    assert not story.path.exists()


def test_events_come_back_as_written_by_what_they_concern(story):
    ledger = story.live(actions=3)
    head = ledger.head
    story.close()
    with LedgerReader.open(story.path) as reader:
        events = list(reader.events())
        assert [event.seq for event in events] == list(range(1, head.seq + 1))
        assert reader.head() == head
        for field in ("session", "task", "action"):
            value = next(event.body[field] for event in events if field in event.body)
            assert list(reader.events(**{field: value})) == [
                event for event in events if event.body.get(field) == value
            ]
        assert list(reader.events(newest_first=True)) == events[::-1]
        assert list(reader.events(newest_first=True, limit=3)) == events[-3:][::-1]
        assert list(reader.events(after=4, until=9)) == events[4:9]
        assert [event.type for event in reader.events(types=["action.ended"], limit=2)] == ["action.ended"] * 2
        assert list(reader.events(session="S1", task="triage", action="A2")) == [
            event for event in events if event.body.get("action") == "A2"
        ]


def test_pages_join_without_seam(story):
    ledger = story.create()
    for _ in range(4):
        ledger.commit(*(alarm("x") for _ in range(300)))
    assert [event.seq for event in ledger.reader.events()] == list(range(1, 1202))
    assert [event.seq for event in ledger.reader.events(limit=750)] == list(range(1, 751))
    assert [event.seq for event in ledger.reader.events(newest_first=True, limit=600)] == list(range(1201, 601, -1))
    assert [event.seq for event in ledger.reader.events(after=100, until=1100, newest_first=True)] == list(
        range(1100, 100, -1)
    )


def test_the_chain_covers_number_time_type_body_payload_and_predecessor(story):
    ledger = story.live(actions=1)
    row = ledger.reader.rows("SELECT seq, at, type, body, payload_hash, hash FROM events WHERE seq = 5")[0]
    prev = ledger.reader.event(4).hash
    seq, at, type_, body, payload_hash, hash_ = row
    assert payload_hash
    assert chain.link(seq, at, type_, body, payload_hash, prev) == hash_
    changed = json.dumps({**json.loads(body), "task": "other"}, separators=(",", ":"), sort_keys=True)
    for other in (
        (seq + 1, at, type_, body, payload_hash, prev),
        (seq, at + 1, type_, body, payload_hash, prev),
        (seq, at, "x", body, payload_hash, prev),
        (seq, at, type_, changed, payload_hash, prev),
        (seq, at, type_, body, None, prev),
        (seq, at, type_, body, payload_hash, None),
    ):
        assert chain.link(*other) != hash_


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE events SET body = '{}' WHERE seq = 2",
        "DELETE FROM events WHERE seq = 2",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events VALUES (2, 0, 'x', '{}', NULL, 'h', NULL, NULL, NULL)",
        "INSERT INTO events VALUES (9999, 0, 'x', '{}', NULL, 'h', NULL, NULL, NULL)",
        "UPDATE payloads SET data = x'00'",
        "DELETE FROM payloads",
    ],
)
def test_the_database_itself_refuses_changes_of_the_past(story, sql):
    story.live().close()
    with sqlite3.connect(story.path) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(sql)
    db.close()
    assert story.verify().ok


def test_a_commit_is_all_or_nothing(story):
    ledger = story.create()
    head = ledger.head
    with pytest.raises(LedgerRefused):
        ledger.commit(alarm("x"), story.intent("A1", "S1"))
    assert ledger.head == head == ledger.reader.head()
    assert ledger.commit(alarm("y"))[0].seq == head.seq + 1


async def test_writes_of_one_tick_share_one_commit(story):
    ledger = story.create()
    groups = []
    ledger.subscribe(groups.append)
    results = await asyncio.gather(*(ledger.write(alarm(f"a{n}"), alarm(f"b{n}")) for n in range(10)))
    assert len(groups) == 1
    assert [event.seq for result in results for event in result] == list(range(2, 22))
    assert [[event.body["code"] for event in result] for result in results] == [[f"a{n}", f"b{n}"] for n in range(10)]
    assert len({event.at for event in groups[0]}) == 1


async def test_one_refusal_in_a_group_harms_no_other(story):
    ledger = story.create()
    results = await asyncio.gather(
        ledger.write(alarm("a")),
        ledger.write(alarm("half"), story.intent("A1", "S1")),
        ledger.write(alarm("b", payload=object())),
        ledger.write(alarm({1: 2})),  # type: ignore[arg-type]
        ledger.write(alarm("c")),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in results] == ["tuple", "LedgerRefused", "tuple", "CannotEncode", "tuple"]
    assert [event.body["code"] for event in ledger.reader.events(types=["alarm.raised"])] == ["a", "b", "c"]
    story.close()
    assert story.verify().ok


async def test_what_was_handed_in_is_written_though_the_caller_is_cancelled(story):
    ledger = story.create()
    task = asyncio.ensure_future(ledger.write(alarm("outcome")))
    other = asyncio.ensure_future(ledger.write(alarm("other")))
    await asyncio.sleep(0)
    task.cancel()
    await other
    assert task.cancelled()
    assert [event.body["code"] for event in ledger.reader.events(types=["alarm.raised"])] == ["outcome", "other"]


async def test_closing_writes_what_waits(story):
    ledger = story.create()
    task = asyncio.ensure_future(ledger.write(alarm("last")))
    await asyncio.sleep(0)
    ledger.close()
    await task
    with LedgerReader.open(story.path) as reader:
        assert reader.head().seq == 2
    with pytest.raises(LedgerUnwritable):
        await ledger.write(alarm("late"))


def test_subscribers_hear_after_the_commit_and_cannot_break_it(story, caplog):
    ledger = story.create()
    heard = []

    def broken(events):
        raise ValueError("a broken view")

    def durable(events):
        with LedgerReader.open(story.path) as reader:
            heard.append((events[-1].seq, reader.head().seq))

    ledger.subscribe(broken)
    stop = ledger.subscribe(durable)
    ledger.commit(alarm("x"))
    stop()
    stop()
    ledger.commit(alarm("y"))
    assert heard == [(2, 2)]
    assert "a broken view" in caplog.text


def test_secrets_are_redacted_at_the_door(story):
    def redact(value):
        if isinstance(value, str):
            return value.replace("hunter2", "[secret]")
        if isinstance(value, dict):
            return {key: redact(item) for key, item in value.items()}
        return [redact(item) for item in value] if isinstance(value, list) else value

    ledger = story.create(redact=redact)
    session = story.session(payload="login with hunter2")
    action = story.new("A")
    ledger.commit(story.proposal(action, session), story.decision(action, session), story.intent(action, session))
    ledger.commit(
        story.outcome(action, session, "failed", error="denied for hunter2", payload={"result": ["hunter2", 1]})
    )
    story.close()
    for file in story.directory.iterdir():
        assert b"hunter2" not in file.read_bytes()
    with LedgerReader.open(story.path) as reader:
        ended = next(reader.events(types=["action.ended"]))
        assert ended.body["error"] == "denied for [secret]"
        assert reader.payload(ended.seq) == {"result": ["[secret]", 1]}


def test_payloads_are_bounded_with_both_numbers(story):
    ledger = story.create()
    with pytest.raises(LedgerRefused, match=r"5,000,002 bytes and at most 4,194,304"):
        ledger.commit(alarm("x", payload="a" * 5_000_000))
    with pytest.raises(LedgerRefused, match="payload"):
        ledger.commit(alarm("x" * 70_000))
    ledger.commit(alarm("x", payload="a" * 4_000_000))
    assert len(ledger.reader.payload(2)) == 4_000_000
    assert len(ledger.reader.rows("SELECT data FROM payloads WHERE seq = 2")[0][0]) < 100_000


def test_equal_payloads_have_different_hashes(story):
    ledger = story.create()
    first, second = ledger.commit(alarm("x", payload="yes"), alarm("x", payload="yes"))
    assert first.payload_hash != second.payload_hash


def test_what_a_tool_returned_is_recorded_however_odd(story):
    ledger = story.create()
    (event,) = ledger.commit(alarm("x", payload={"id": 2**70, "name": "caf\udce9", "ratio": float("nan")}))
    assert ledger.reader.payload(event.seq) == {"id": str(2**70), "name": {"base64": "Y2Fm6Q=="}, "ratio": "nan"}


def test_the_same_story_gives_the_same_bytes(new_story):
    heads = set()
    for _ in range(2):
        told = new_story()
        heads.add(told.live(actions=3).head)
        told.close()
    assert len(heads) == 1


def test_a_reader_sees_commits_of_a_running_writer(story):
    ledger = story.create()
    with LedgerReader.open(story.path) as reader:
        for seq in (2, 3):
            ledger.commit(alarm("x"))
            assert reader.head().seq == seq
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.rows("DELETE FROM pauses")


def test_ledger_opened_twice_keeps_its_chain(story):
    story.create().commit(alarm("x"))
    story.close()
    for fence in (2, 3):
        story.open(fence).commit(alarm("y"))
        story.close()
    assert story.verify().ok
    assert story.verify().head.seq == 4


def test_create_leaves_nothing_half_made(story):
    (story.directory / "ledger.db.new").write_bytes(b"left over from a crash")
    (story.directory / "ledger.db.new-wal").write_bytes(b"as well")
    assert isinstance(story.create(), Ledger)
    assert not list(story.directory.glob("ledger.db.new*"))
