"""What recall finds for a query, and that its columns in memory follow memory.db."""

import random
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from perdure.memory.catalogue import NONE, Catalogue
from perdure.memory.dates import named_days
from perdure.memory.embedding import DIMENSIONS
from perdure.memory.keys import KEYS_MAX, embedded, keys, similarities, whole
from perdure.memory.recall import search
from perdure.memory.store import Record, Store

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)  # a Sunday


def us(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def record(seq, text, *, session="S", task="t", days_ago=0.0, speaker="tool"):
    at = us(NOW - timedelta(days=days_ago))
    return Record(
        id=f"r{seq}", seq=seq, at=at, task=task, session=session, kind="action", speaker=speaker, untrusted=False, text=text,
        tokens=10, sources=(seq,),
    )  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "memory.db", identity="x")
    yield store
    store.close()


def add(store, *records):
    with store.transaction():
        for each in records:
            store.add_record(each)


def found(store, query, scope="t"):
    catalogue = Catalogue(store)
    catalogue.refresh()
    hits = search(catalogue, scope, query, vector=None, candidates=catalogue.rows([]), now=us(NOW))
    return [hit.record.id for hit in hits]


def unit(seed):
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


def as_seen(catalogue):
    """Everything that ranking sees, by the records' names."""
    rows = np.flatnonzero(catalogue.alive[: catalogue.count])
    ids = catalogue.ids(rows)
    names = dict(zip(rows.tolist(), ids, strict=True)) | {NONE: None}
    held, blobs = catalogue.exact(rows)
    near = catalogue.nearest(unit(0), catalogue.visible("t"), 20)
    return {
        "ids": ids,
        "at": catalogue.at[rows].tolist(),
        "before": [names[each] for each in catalogue.before[rows].tolist()],
        "after": [names[each] for each in catalogue.after[rows].tolist()],
        "exact": dict(zip((names[row] for row in held.tolist()), blobs, strict=True)),
        "nearest": [names[row] for row in near.tolist()],
        "vectors": catalogue.vectors,
    }


def remove_and_fail(store, ids):
    with store.transaction():
        store.remove_records(ids)
        raise KeyError


@pytest.mark.parametrize("seed", range(8))
def test_columns_kept_in_step_are_those_that_are_read_anew(store, seed):
    chance = random.Random(seed)
    kept = Catalogue(store)
    there: list[str] = []
    seq = 0
    for _ in range(60):
        match chance.choice(["add", "add", "vectors", "remove", "remove the last", "rolled back"]):
            case "add":
                new = [
                    record(
                        seq + n,
                        f"word{n}",
                        session=chance.choice(["A", "B", None]),
                        task=chance.choice(["t", "u", None]),
                    )
                    for n in range(1, chance.randrange(2, 6))
                ]
                seq += len(new)
                add(store, *new)
                there += [each.id for each in new]
            case "vectors" if there:
                ids = chance.sample(there, min(3, len(there)))
                with store.transaction():
                    store.add_vectors(ids, [unit(chance.random().__hash__() % 2**31).tobytes() for _ in ids])
            case "remove" if there:
                with store.transaction():
                    store.remove_records([there.pop(chance.randrange(len(there)))])
            case "remove the last" if there:
                with store.transaction():
                    store.remove_records([there.pop()])
            case "rolled back" if there:
                with pytest.raises(KeyError):
                    remove_and_fail(store, there[:2])
        if chance.random() < 0.5:
            kept.refresh()
    kept.refresh()
    anew = Catalogue(store)
    anew.refresh()
    assert as_seen(kept) == as_seen(anew)
    assert as_seen(kept)["ids"] == there


@pytest.mark.parametrize("seed", range(4))
def test_what_lacks_a_vector_is_known_without_a_look_at_every_record(store, seed):
    chance = random.Random(seed)
    for seq in range(1, 120):
        match chance.choice(["add", "add", "vectors", "remove", "cool", "rolled back"]):
            case "add":
                add(store, record(seq, f"word{seq}", days_ago=chance.choice([0, 200])))
                add(store, record(seq, "again, which changes nothing"))
            case "vectors":
                some = [id for id, _ in store.without_vector(3)]
                with store.transaction():
                    store.add_vectors(some, [unit(seq).tobytes()] * len(some))
            case "remove":
                with store.transaction():
                    store.remove_records([f"r{chance.randrange(1, seq + 1)}"])
            case "cool":
                with store.transaction():
                    store.cool(us(NOW - timedelta(days=100)), 2)
            case "rolled back":
                with pytest.raises(KeyError):
                    remove_and_fail(store, [f"r{number}" for number in range(1, seq)])
    lacking = "SELECT id FROM records WHERE NOT cold AND id NOT IN (SELECT record FROM vectors) ORDER BY seq DESC"
    assert [id for id, _ in store.without_vector(1000)] == [id for (id,) in store.query(lacking)]
    statements: list[str] = []
    store._db.set_trace_callback(statements.append)
    store.without_vector(5)
    store._db.set_trace_callback(None)
    plan = [row[3] for row in store.query(f"EXPLAIN QUERY PLAN {statements[0]}")]
    assert plan[0].startswith("SCAN unembedded")
    assert all("SCAN" not in step and "TEMP" not in step for step in plan[1:])


def test_the_vectors_in_memory_find_what_the_exact_ones_find(store):
    add(store, *(record(seq, "x") for seq in range(1, 301)))
    vectors = np.stack([unit(seq) for seq in range(1, 301)])
    with store.transaction():
        store.add_vectors([f"r{seq}" for seq in range(1, 301)], [each.tobytes() for each in vectors])
    catalogue = Catalogue(store)
    catalogue.refresh()
    exact = {f"r{place + 1}" for place in np.argsort(-(vectors @ unit(9_999)))[:10]}
    near = catalogue.ids(catalogue.nearest(unit(9_999), catalogue.visible("t"), 15))
    assert exact <= set(near)
    assert catalogue.nearest(unit(9_999), catalogue.visible("another"), 15).size == 0


def test_words_that_all_hold_are_passed_over_unless_there_are_no_others(store, monkeypatch):
    monkeypatch.setattr("perdure.memory.words.MATCHES_MAX", 5)
    add(store, *(record(seq, f"backup of host{seq}", session=None) for seq in range(1, 20)))
    assert found(store, "backup host7")[0] == "r7"
    assert found(store, "backup") == ["r19", "r18", "r17", "r16", "r15"]


def test_a_path_or_address_is_found_as_a_phrase(store):
    said = ("blocked 10.0.0.17", "blocked 10.17.0.0", 'said "quoted" words')
    add(store, *(record(seq, text, session=None) for seq, text in enumerate(said, 1)))
    assert found(store, "what about 10.0.0.17?") == ["r1"]
    assert found(store, '"quoted" AND (NEAR* -') == ["r3"]


def test_a_record_about_what_the_query_names_comes_first(store):
    add(store, record(1, "the disk of web-1 is full", session="A"), record(2, "web-1: the disk is full", session="B"))
    assert found(store, "is the disk of web-1 full?")[0] == "r2"


def test_what_has_no_vector_yet_is_not_outranked_by_what_is_only_near(store):
    """Embedding may fail or lag behind: the newest records then have words alone."""
    add(store, record(1, "looked at mark2x", session="A"), record(2, "looked at mark3x", session="B"))
    with store.transaction():
        store.add_vectors(["r1"], [unit(1).tobytes()])
    catalogue = Catalogue(store)
    catalogue.refresh()
    hits = search(catalogue, "t", "mark3x", vector=unit(1), candidates=catalogue.rows(["r1"]), now=us(NOW))
    assert [hit.record.id for hit in hits] == ["r2", "r1"]


def test_a_day_that_the_query_names_comes_first(store):
    add(store, *(record(seq, "the backup failed", session=f"S{seq}", days_ago=seq * 20) for seq in range(1, 8)))
    assert found(store, "which backup failed on 23 September 2026?")[0] == "r3"


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("on 2026-11-03", date(2026, 11, 3), date(2026, 11, 3)),
        ("on 3 November 2026", date(2026, 11, 3), date(2026, 11, 3)),
        ("on Nov 3rd, 2026", date(2026, 11, 3), date(2026, 11, 3)),
        ("in November 2026", date(2026, 11, 1), date(2026, 11, 30)),
        ("in December", date(2026, 12, 1), date(2026, 12, 31)),
        ("yesterday", date(2026, 11, 21), date(2026, 11, 21)),
        ("last Friday", date(2026, 11, 20), date(2026, 11, 20)),
        ("last Sunday", date(2026, 11, 15), date(2026, 11, 15)),
        ("last week", date(2026, 11, 9), date(2026, 11, 15)),
        ("this week", date(2026, 11, 16), date(2026, 11, 22)),
        ("last month", date(2026, 10, 1), date(2026, 10, 31)),
        ("three days ago", date(2026, 11, 19), date(2026, 11, 19)),
    ],
)
def test_days_are_named_in_many_ways(text, first, last):
    ((start, end),) = named_days(f"What happened {text}?", us(datetime(2026, 1, 1, tzinfo=UTC)), us(NOW))
    assert datetime.fromtimestamp(start / 1e6, tz=UTC).date() == first
    assert datetime.fromtimestamp(end / 1e6, tz=UTC).date() == last + timedelta(days=1)


@pytest.mark.parametrize("text", ["we may go", "31 June 2026", "in the year 9999", "1.2.3", "9999-12-31", ""])
def test_what_names_no_day_narrows_nothing(text):
    assert all(start < end for start, end in named_days(text, -5, 2**62))
    assert text != "we may go" or named_days(text, 0, us(NOW)) == []


def test_a_record_is_found_by_any_of_its_sentences():
    text = "Anna: The weather was fine on Monday. We moved the archive to the new disk! Lunch was late."
    assert keys(text) == [
        "Anna: The weather was fine on Monday.", "Anna: We moved the archive to the new disk!", "Anna: Lunch was late.",
    ]  # fmt: skip
    assert keys("one sentence only") == []
    assert len(keys("A sentence here. " * 100)) <= KEYS_MAX
    rows = {each: unit(number) for number, each in enumerate([text, *keys(text)])}
    (blob,) = embedded([text], lambda texts: np.stack([rows[each] for each in texts]))
    assert np.array_equal(whole(blob), rows[text])
    exact, best = similarities([blob, unit(77).tobytes()], rows[keys(text)[1]])
    assert best[0] == pytest.approx(1.0, abs=0.01)
    assert exact[0] == pytest.approx(float(rows[text] @ rows[keys(text)[1]]), abs=1e-6)
    assert best[1] == exact[1]
