"""Tampering, done by someone who may write the file and knows its format: verification names the event and what was done."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import PerdureError
from perdure.state import chain
from perdure.state import events as e
from perdure.state.anchor import anchors
from perdure.state.verification import verify

TRIGGERS = (
    "events_are_never_updated",
    "events_are_never_deleted",
    "events_come_in_order",
    "payloads_are_never_updated",
    "payloads_leave_a_tombstone",
)


@contextlib.contextmanager
def tampering(story):
    """The database with its own defences taken off, and put back afterwards, so that only the deed shows."""
    story.close()
    with contextlib.closing(sqlite3.connect(story.path, isolation_level=None)) as db:
        kept = [db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0] for name in TRIGGERS]
        for name in TRIGGERS:
            db.execute(f"DROP TRIGGER {name}")
        yield db
        for sql in kept:
            db.execute(sql)


def rechain(db, start):
    """Make the hashes fit again from `start` on, as a forger would."""
    prev = db.execute("SELECT hash FROM events WHERE seq < ? ORDER BY seq DESC LIMIT 1", (start,)).fetchone()
    prev = prev[0] if prev else None
    for seq, at, type_, body, payload_hash in db.execute(
        "SELECT seq, at, type, body, payload_hash FROM events WHERE seq >= ? ORDER BY seq", (start,)
    ).fetchall():
        prev = chain.link(seq, at, type_, body, payload_hash, prev)
        db.execute("UPDATE events SET hash = ? WHERE seq = ?", (prev, seq))


@pytest.fixture
def told(story):
    story.live(actions=4).close()
    assert story.verify().ok
    assert story.verify().findings == []
    return story


def found(story, **options):
    return {(finding.seq, finding.kind) for finding in story.verify(**options).findings}


@pytest.mark.parametrize(
    "change",
    [
        "at = at + 1",
        "type = 'alarm.raised'",
        "body = replace(body, 'write_file', 'read_file')",
        "hash = 'sha256:0'",
        "payload_hash = 'sha256:0'",
        "payload_hash = NULL",
        "body = body || ' '",
        "body = '[]'",
        "body = 'garbage'",
    ],
)
def test_an_edited_event_is_named(told, change):
    with tampering(told) as db:
        db.execute(f"UPDATE events SET {change} WHERE seq = 9")
    assert (9, "edited") in found(told)


@pytest.mark.parametrize("column", ["session", "task", "action"])
def test_an_edited_search_column_is_named(told, column):
    with tampering(told) as db:
        db.execute(f"UPDATE events SET {column} = 'x' WHERE seq = 7")
    assert found(told) == {(7, "column-changed")}


def test_deletion_in_the_middle_is_named(told):
    with tampering(told) as db:
        db.execute("DELETE FROM events WHERE seq IN (8, 9)")
    kinds = found(told)
    assert (8, "deleted") in kinds
    (finding,) = [finding for finding in told.verify().findings if finding.kind == "deleted"]
    assert "2 events before event 10" in finding.detail
    assert not {kind for _, kind in kinds} & {"older-file", "tail-deleted", "replaced"}  # also where one was anchored


def test_deletion_in_the_middle_with_renumbering_is_named(told):
    with tampering(told) as db:
        db.execute("DELETE FROM events WHERE seq = 8")
        db.execute("DELETE FROM payloads WHERE seq = 8")
        for seq in range(9, db.execute("SELECT MAX(seq) FROM events").fetchone()[0] + 1):
            db.execute("UPDATE events SET seq = seq - 1 WHERE seq = ?", (seq,))
            db.execute("UPDATE payloads SET seq = seq - 1 WHERE seq = ?", (seq,))
    assert (8, "edited") in found(told)


def test_reordered_events_are_told_from_edited_ones(told):
    with tampering(told) as db:
        db.executescript(
            "UPDATE events SET seq = -1 WHERE seq = 7; UPDATE events SET seq = 7 WHERE seq = 12; UPDATE events SET seq = 12 WHERE seq = -1;"
        )
    moved = {(seq, kind) for seq, kind in found(told) if kind in ("reordered", "edited")}
    assert moved == {
        (7, "reordered"),
        (12, "reordered"),
    }  # and nothing of those between and after, which are as they were


@pytest.mark.parametrize("count", [1, 3, 100])
def test_a_deleted_tail_is_named(told, count):
    with tampering(told) as db:
        head = db.execute("SELECT MAX(seq) FROM events").fetchone()[0]
        keep = max(head - count, 1)
        db.execute("DELETE FROM events WHERE seq > ?", (keep,))
    kinds = found(told)
    assert (keep + 1, "tail-deleted") in kinds


def test_a_tail_deleted_with_all_its_traces_is_named(told):
    """The forger also cuts the projections back: then it looks like an older file, and is named as that."""
    from perdure.state.backup import rebuild_projections

    with tampering(told) as db:
        db.execute("DELETE FROM events WHERE seq > 9")
        db.execute("DELETE FROM payloads WHERE seq > 9")
    anchor = (told.directory / "anchor").read_bytes()
    (told.directory / "anchor").unlink()
    rebuild_projections(told.directory)
    (told.directory / "anchor").write_bytes(anchor)
    assert found(told) == {(10, "older-file")}


def test_an_older_file_put_in_place_is_named(told):
    shutil.copy(told.path, told.directory / "older")
    head = told.verify().head.seq
    told.open()
    told.session("later")
    told.close()
    shutil.copy(told.directory / "older", told.path)
    assert found(told) == {(head + 1, "older-file")}


def test_a_rebuilt_chain_is_named(told):
    with tampering(told) as db:
        db.execute("UPDATE events SET at = at + 1 WHERE seq = 7")
        rechain(db, 7)
    findings = told.verify(parity=False).findings
    anchored = [line.seq for line in anchors(told.directory) if line.seq >= 7]
    assert [(finding.kind, finding.seq) for finding in findings] == [("replaced", anchored[0])]
    assert f"as {anchored[0]} to {anchored[-1]}: the file was replaced" in findings[0].detail


def test_another_ledger_in_its_place_is_named(told, new_story):
    other = new_story()
    other.at += 5
    other.live(actions=4).close()
    shutil.copy(other.path, told.path)
    assert [finding.kind for finding in told.verify(parity=False).findings] == ["replaced"]


def test_appended_events_are_reported_as_not_anchored(told):
    head = told.verify().head
    with tampering(told) as db:
        body = '{"code":"x"}'
        db.execute(
            "INSERT INTO events VALUES (?, 1, 'alarm.raised', ?, NULL, ?, NULL, NULL, NULL)",
            (head.seq + 1, body, chain.link(head.seq + 1, 1, "alarm.raised", body, None, head.hash)),
        )
    report = told.verify()
    assert report.ok
    assert [(finding.seq, finding.kind) for finding in report.findings] == [(head.seq + 1, "not-anchored")]


def test_a_head_kept_elsewhere_convicts_a_forger_who_also_rewrote_the_anchor(told):
    kept = list(anchors(told.directory))[-1:]
    with tampering(told) as db:
        db.execute("UPDATE events SET at = at + 1 WHERE seq = 7")
        rechain(db, 7)
        lines = list(anchors(told.directory))
        hashes = dict(db.execute("SELECT seq, hash FROM events"))
    (told.directory / "anchor").write_bytes(
        b"".join(type(line)(line.epoch, line.seq, hashes[line.seq], line.at).line() for line in lines)
    )
    assert "replaced" not in told.kinds(parity=False)
    assert "replaced" in told.kinds(parity=False, heads=kept)


def test_a_missing_anchor_is_named(told):
    (told.directory / "anchor").unlink()
    assert found(told) == {(0, "no-anchor")}


def test_a_torn_anchor_line_is_passed_over(told):
    anchor = told.directory / "anchor"
    data = anchor.read_bytes()
    anchor.write_bytes(data[:-20])
    report = told.verify()
    assert report.ok
    assert {finding.kind for finding in report.findings} == {"not-anchored"}
    told.open().commit(e.AlarmRaised(code="x"))
    told.close()
    assert told.verify().findings == []


def test_a_changed_payload_is_named(told):
    with tampering(told) as db:
        seq = db.execute("SELECT MIN(seq) FROM payloads").fetchone()[0]
        db.execute("UPDATE payloads SET data = ?, encoding = 'plain' WHERE seq = ?", (json.dumps("lies").encode(), seq))
        last = db.execute("SELECT MAX(seq) FROM payloads").fetchone()[0]
        db.execute("UPDATE payloads SET data = x'00', encoding = 'zlib' WHERE seq = ?", (last,))
    assert found(told) == {(seq, "payload-changed"), (last, "payload-changed")}


def test_a_payload_gone_without_tombstone_is_named(told):
    with tampering(told) as db:
        seq = db.execute("SELECT MAX(seq) FROM payloads").fetchone()[0]
        db.execute("DELETE FROM payloads WHERE seq = ?", (seq,))
        db.execute("INSERT INTO payloads VALUES (1, 'plain', x'', x'')")
    assert found(told) == {(seq, "payload-deleted"), (1, "payload-stray")}


@pytest.mark.parametrize(
    ("sql", "table"),
    [
        ("UPDATE actions SET status = 'failed' WHERE action = (SELECT MIN(action) FROM actions)", "actions"),
        ("UPDATE escalations SET state = 'approved', valid_until = 9e15", "escalations"),
        ("INSERT INTO grants VALUES ('G9', 'triage', 't', 'r', 0, 0, NULL, NULL, 1)", "grants"),
        ("DELETE FROM slots", "slots"),
        ("UPDATE reliability SET succeeded = 99", "reliability"),
        ("INSERT INTO erasures VALUES (3, 'x', NULL, 4, 5)", "erasures"),
    ],
)
def test_a_forged_projection_is_named(told, sql, table):
    with tampering(told) as db:
        db.execute(sql.replace("9e15", "9000000000000000"))
    details = [finding.detail for finding in told.verify().findings if finding.kind == "projection-differs"]
    assert details
    assert all(detail.startswith(table) for detail in details)


def test_a_row_that_differs_is_told_by_its_columns(told):
    with tampering(told) as db:
        db.execute("UPDATE escalations SET state = 'approved'")
    (detail,) = {finding.detail for finding in told.verify().findings if finding.kind == "projection-differs"}
    assert "state is 'approved' and should be '" in detail
    assert len(detail) < 200


def test_an_event_that_could_never_have_been_written_is_named(told):
    """A forger with the anchor in hand still has to obey the rules that every write obeys."""
    head = told.verify().head
    body = '{"action":"A2","attempt":1,"digest":"sha256:d","effect":"idempotent","session":"S1","task":"triage","tool":"write_file"}'
    with tampering(told) as db:
        db.execute(
            "INSERT INTO events VALUES (?, 1, 'action.intended', ?, NULL, ?, 'S1', 'triage', 'A2')",
            (head.seq + 1, body, chain.link(head.seq + 1, 1, "action.intended", body, None, head.hash)),
        )
    assert (head.seq + 1, "impossible") in found(told)


@pytest.mark.parametrize("name", ["events_are_never_deleted", "actions_session"])
def test_a_dropped_defence_is_named_and_made_again(told, name):
    from perdure.state.backup import rebuild_projections

    kind = "TRIGGER" if name.startswith("events") else "INDEX"
    with contextlib.closing(sqlite3.connect(told.path)) as db, db:
        db.execute(f"DROP {kind} {name}")
        if kind == "TRIGGER":
            db.execute("CREATE TRIGGER mine AFTER INSERT ON events BEGIN DELETE FROM pauses; END")
    details = {finding.detail for finding in told.verify().findings if finding.kind == "schema-changed"}
    assert details == (
        {f"trigger {name} is missing", "trigger mine was added"} if kind == "TRIGGER" else {f"index {name} is missing"}
    )
    if kind == "TRIGGER":
        with pytest.raises(PerdureError, match="perdure ledger rebuild"):
            told.open()
    rebuild_projections(told.directory)
    assert told.verify().findings == []
    told.open()


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_flipped_byte_of_the_truth_goes_unnoticed(tmp_path_factory, new_story, data):
    """Any one changed byte of any column of events or payloads is found."""
    if not hasattr(test_no_flipped_byte_of_the_truth_goes_unnoticed, "source"):
        told = new_story()
        told.live(actions=2).close()
        test_no_flipped_byte_of_the_truth_goes_unnoticed.source = told
    source = test_no_flipped_byte_of_the_truth_goes_unnoticed.source
    told = type(source)(tmp_path_factory.mktemp("flipped"))
    for name in ("ledger.db", "anchor"):
        shutil.copy(source.directory / name, told.directory / name)
    with tampering(told) as db:
        table = data.draw(st.sampled_from(["events", "payloads"]))
        columns = {
            "events": ["at", "type", "body", "payload_hash", "hash", "session", "task", "action"],
            "payloads": ["encoding", "salt", "data"],
        }[table]
        column = data.draw(st.sampled_from(columns))
        seqs = [seq for (seq,) in db.execute(f"SELECT seq FROM {table} WHERE {column} IS NOT NULL ORDER BY seq")]
        seq = data.draw(st.sampled_from(seqs))
        (value,) = db.execute(f"SELECT {column} FROM {table} WHERE seq = ?", (seq,)).fetchone()
        if isinstance(value, int):
            changed = value ^ (1 << data.draw(st.integers(0, 50)))
        else:
            raw = bytearray(value if isinstance(value, bytes) else value.encode())
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= (
                data.draw(st.integers(1, 127)) if isinstance(value, bytes) else 1
            )
            changed = bytes(raw) if isinstance(value, bytes) else raw.decode()
        db.execute(f"UPDATE {table} SET {column} = ? WHERE seq = ?", (changed, seq))
    report = verify(told.directory)
    assert not report.ok
    assert seq in {finding.seq for finding in report.findings}


def test_a_live_ledger_verifies_while_it_is_written(story):
    ledger = story.live()
    for n in range(5):
        ledger.commit(e.AlarmRaised(code=f"{n}"))
        assert story.verify().findings == []


def test_progress_is_told_and_ends_at_the_end(told):
    seen = []
    told.verify(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (told.verify().head.seq,) * 2
