"""Text that is old enough leaves memory, never the ledger: summaries, facts and people's words stay, and all of it leads back."""

import sqlite3

import numpy as np
import pytest

from perdure.memory import pass_rows
from perdure.memory.compaction import record_from
from perdure.memory.extraction import Extraction
from perdure.state import events as e

DAY = 86_400_000_000
KEEP = 45 * DAY
TABLES = dict.fromkeys(("claims", "pins", "summaries", "covers", "sources", "forgotten", "zones"), "*") | {
    "records": "id, at, session, kind, speaker, untrusted, text, cold"
}


def rows(past):
    with sqlite3.connect(past.directory / "memory.db") as db:
        held = {
            table: sorted(db.execute(f"SELECT {columns} FROM {table}"), key=repr) for table, columns in TABLES.items()
        }
        db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
    db.close()
    return held


def tell(past):
    past.pin("Never block 10.0.0.0/8.")
    for week in range(16):
        past.session(
            *(
                past.action("read_file", {"path": f"inbox/{n}.log"}, f"week {week} file {n} kettle{week}x")
                for n in range(3)
            ),
            past.remember("web-1", f"owner{week}", f"team-{week}"),
            says=f"week {week}",
        )
        past.at += 7 * DAY
    past.correct("web-1", "owner0", "people")


async def compacted(past, **options):
    memory = past.memory(keep_us=KEEP, **options)
    await memory.compact("triage", scope="triage")
    return memory


async def made_anew(past):
    """The rows of a memory made again from the ledger alone."""
    for path in past.directory.glob("memory.db*"):
        path.unlink()
    await (await compacted(past)).close()
    return rows(past)


async def test_what_is_old_is_no_longer_recalled_and_what_it_came_to_stays(past):
    tell(past)
    memory = await compacted(past)
    store = memory._store
    sizes = store.sizes()
    assert sizes["cold_records"] >= 9 * 4
    assert await memory.recall("triage", "kettle0x") == []
    assert "week 15 file 0" in " ".join(found.text for found in await memory.recall("triage", "kettle15x"))
    assert [fact.value for fact in await memory.facts("triage", "web-1", "owner0")] == ["people"]
    assert [fact.value for fact in await memory.facts("triage", "web-1", "owner1")] == ["team-1"]
    assert len(store.pins("triage")) == 1
    assert len(store.summaries("triage", "session")) == 16
    assert len(store.summaries("triage", "month")) >= 3
    oldest = store.summaries("triage", "session")[-1]
    covered = store.records(oldest.covers)
    assert set(covered) == set(oldest.covers)  # every line still leads somewhere
    cold = next(record for record in covered.values() if record.cold)
    assert cold.text == ""
    assert "week 0" in record_from(Extraction(past.ledger.reader), past.ledger.reader, cold.seq).text
    await memory.close()
    rows(past)


async def test_a_rebuild_and_compacting_often_give_the_same(past):
    memory = past.memory(keep_us=KEEP)
    for week in range(12):
        past.session(past.action("read_file", {"path": "a"}, f"week {week}"), past.remember("a", "b", str(week)))
        past.at += 9 * DAY
        await memory.compact("triage", scope="triage")
    await memory.compact("triage", scope="triage")  # also reads the receipt, whose time closes periods
    await memory.close()
    often = rows(past)
    assert await made_anew(past) == often
    assert any(row[-1] for row in often["records"])


@pytest.mark.parametrize("how", ["forgotten", "erased"])
async def test_what_is_forgotten_or_erased_later_leaves_the_summaries_that_told_of_it(past, how):
    tell(past)
    memory = await compacted(past)
    told = memory._store.summaries("triage", "session")[-1]
    record = memory._store.records(told.covers)[told.covers[0]]
    assert record.cold
    gone = (
        e.MemoryForgotten(record=record.id, uid=0)
        if how == "forgotten"
        else e.PayloadErased(erased=record.seq, reason="asked", uid=0)
    )
    past.ledger.commit(gone)
    for _ in range(2):
        await memory.compact("triage", scope="triage")
    again = memory._store.summary(told.id)
    assert record.id not in again.covers
    assert "file 0" not in again.text
    assert "file 2" in again.text  # the rest is told again, with the ledger's words
    await memory.close()
    kept = rows(past)
    assert await made_anew(past) == kept


async def test_the_file_shrinks_when_much_has_left_it(past, monkeypatch):
    monkeypatch.setattr(pass_rows, "FREE_PAGES_MIN", 8)  # a small file will do
    for number in range(120):
        past.session(*(past.action("read_file", {"path": f"{n}"}, f"{number} {n} words") for n in range(6)))
        past.at += 3_600_000_000
    memory = await compacted(past)
    await memory._in_worker(lambda: give_vectors(memory._store))
    await memory.close()
    full = (past.directory / "memory.db").stat().st_size
    memory = past.memory(keep_us=KEEP)
    past.at += 100 * DAY
    for _ in range(4):
        past.session(says="long after")
        await memory.compact("triage", scope="triage")
    assert memory._store.sizes()["cold_records"] == 120 * 7
    await memory.close()
    assert (past.directory / "memory.db").stat().st_size < full * 0.6
    rows(past)


def give_vectors(store):
    ids = [id for id, _ in store.without_vector(10_000)]
    with store.transaction():
        store.add_vectors(ids, [np.ones(384, dtype="<f4").tobytes()] * len(ids))
