"""The columns in memory and memory.db stay one: a disk that fills up, texts that leave memory, and years of both."""

import numpy as np
import pytest
from tests.memory.test_recall import NOW, add, found, record, unit, us

from perdure.memory.catalogue import Catalogue
from perdure.memory.recall import search
from perdure.memory.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "memory.db", identity="x")
    yield store
    store.close()


def limit_pages(store, more):
    """The file may grow by so many pages: what a full disk does to a transaction."""
    ((pages,),) = store.query("PRAGMA page_count").fetchall()
    store.query(f"PRAGMA max_page_count={pages + more}").fetchall()


def remove_and_fill(store, id):
    with store.transaction():
        store.remove_records([id])
        for seq in range(100, 3_000):
            store.add_record(record(seq, f"{'x' * 2_000}{seq}"))


def rows_seen(store, query, catalogue):
    hits = search(catalogue, "t", query, vector=None, candidates=catalogue.rows([]), now=us(NOW))
    return [(hit.record.id, hit.score) for hit in hits]


def test_a_full_disk_takes_nothing_out_of_the_columns_that_memory_still_has(store):
    add(store, *(record(seq, f"word{seq}") for seq in range(1, 6)))
    catalogue = Catalogue(store)
    catalogue.refresh()
    limit_pages(store, 2)
    with pytest.raises(Exception, match="full"):
        remove_and_fill(store, "r2")
    limit_pages(store, 100_000)
    catalogue.refresh()
    assert catalogue.ids(np.flatnonzero(catalogue.visible("t"))) == ["r1", "r2", "r3", "r4", "r5"]
    add(store, record(6, "word6"))
    catalogue.refresh()
    assert rows_seen(store, "word6", catalogue)[0][0] == "r6"


def test_a_vector_that_comes_after_the_text_has_left_is_not_kept(store):
    add(store, record(1, "old", days_ago=200), record(2, "new"))
    with store.transaction():
        store.cool(us(NOW) - 100 * 86_400_000_000, 10)
        store.add_vectors(["r1"], [unit(1).tobytes()])
    catalogue = Catalogue(store)
    catalogue.refresh()
    assert (store.count("vectors"), catalogue.vectors) == (0, 0)


def test_columns_pass_over_a_vector_whose_record_they_do_not_have(store):
    add(store, record(1, "old", days_ago=200))
    with store.transaction():
        store.cool(us(NOW) - 100 * 86_400_000_000, 10)
    store.query("INSERT INTO vectors (record, vector) VALUES ('r1', ?)", (unit(1).tobytes(),))
    catalogue = Catalogue(store)
    catalogue.refresh()
    add(store, record(2, "new"))
    catalogue.refresh()
    assert catalogue.nearest(unit(1), catalogue.visible("t"), 5).size == 0


def test_what_was_removed_counts_for_nothing_and_takes_no_room_for_good(store):
    add(store, *(record(seq, f"backup {'of host ' * (seq % 7)}{seq}", session=f"S{seq % 5}") for seq in range(1, 41)))
    kept = Catalogue(store)
    held = 0
    for seq in range(41, 4_041):
        add(store, record(seq, f"backup {'of host ' * (seq % 7)}{seq}", session=f"S{seq}"))
        with store.transaction():
            store.remove_records([f"r{seq - 40}"])
        if seq % 20 == 0:
            kept.refresh()
            held = max(held, kept.count)
    kept.refresh()
    assert held < 2_500
    anew = Catalogue(store)
    anew.refresh()
    assert rows_seen(store, "host backup", kept) == rows_seen(store, "host backup", anew)


def test_the_newest_of_many_equals_are_found(store, monkeypatch):
    monkeypatch.setattr("perdure.memory.recall.CANDIDATES", 10)
    add(store, *(record(seq, "the backup failed", session=None) for seq in range(1, 200)))
    assert found(store, "backup") == [f"r{seq}" for seq in range(199, 189, -1)]


def test_a_search_by_words_alone_reads_no_vector(store):
    add(store, record(1, "backup"))
    with store.transaction():
        store.add_vectors(["r1"], [unit(1).tobytes()])
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    catalogue = Catalogue(store, with_vectors=False)
    catalogue.refresh()
    assert [id for id, _ in rows_seen(store, "backup", catalogue)] == ["r1"]
    assert asked
    assert not any("vector" in each for each in asked)
