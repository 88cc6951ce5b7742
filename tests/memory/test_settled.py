"""Facts kept in step with the claims are those that settling all claims anew gives, and cost what is new."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.memory.facts import settle
from perdure.memory.settled import Settled
from perdure.memory.store import WORKSPACE, Claim, Store
from perdure.memory.terms import query_terms
from perdure.state.retention import erase

TASKS = ["triage", "other", None]
SCOPES = ["triage", "other", WORKSPACE]

said = st.tuples(
    st.sampled_from(TASKS),
    st.sampled_from(["web-1", "web-2"]),
    st.sampled_from("abc"),
    st.sampled_from(["agent", "person"]),
)
steps = st.lists(
    st.one_of(said, st.integers(1, 12), st.sampled_from(["look", "roll back", "one scope"])), min_size=1, max_size=20
)


def anew(store, scope, query):
    """What relevance was before anything was kept: all claims settled, and the facts that are held in order."""
    words = set(query_terms(query))
    facts = settle(store.claims(scope), shared=scope == WORKSPACE)

    def rank(fact):
        shared = len(words & set(query_terms(f"{fact.subject} {fact.attribute} {fact.value}")))
        return (-shared, fact.speaker != "person", -fact.valid_from, fact.id)

    held = sorted((fact for fact in facts if fact.standing != "superseded"), key=rank)
    return held, {f"r{fact.id[1:]}" for fact in facts if fact.standing == "superseded"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("memory") / "memory.db", identity="x")
    yield store
    store.close()


@settings(deadline=None)  # each step is a commit
@given(steps=steps)
def test_what_is_kept_is_what_settling_anew_gives(store, steps):
    with store.transaction():
        for claim in store.claims(WORKSPACE):
            store.remove_claim(claim.seq)
    store.take_removed_claims()
    settled = Settled(store)
    for seq, step in enumerate(steps, 1):
        if isinstance(step, tuple):
            task, subject, value, speaker = step
            with store.transaction():
                store.add_claim(
                    Claim(seq=seq, at=seq, task=task, subject=subject, attribute="owner", value=value, speaker=speaker)
                )
        elif isinstance(step, int):
            with store.transaction():
                store.remove_claim(step)
        elif step == "roll back":
            _removed_and_taken_back(store)
        elif step == "one scope":
            settled.of("triage")  # without a refresh, and before the others
        settled.refresh()
        if step == "look" or seq == len(steps):
            for scope in SCOPES:
                facts = settled.of(scope)
                held, superseded = anew(store, scope, "who has web-1 or b")
                assert facts.relevant("who has web-1 or b", 100) == held
                assert facts.relevant("who has web-1 or b", 2) == held[:2]
                assert superseded <= facts.superseded
                first = {f"r{fact.id[1:]}": fact.standing for fact in held}
                assert {record: facts.standing(record) for record in first} == first
                assert {f"r{facts.fact_of[record][1:]}" for record in facts.disputed} == {
                    record for record, standing in first.items() if standing == "disputed"
                }
                assert not facts.superseded & {facts.fact_of[f"r{fact.id[1:]}"].replace("f", "r") for fact in held}


def _removed_and_taken_back(store):
    try:
        with store.transaction():
            for seq in range(1, 12):
                store.remove_claim(seq)
            raise TimeoutError
    except TimeoutError:
        pass


def test_a_fact_said_twice_and_then_superseded_is_recalled_as_neither(past, ask):
    """The record of its repetition says what holds no longer as much as the first."""
    for value in ("ops", "ops", "data"):
        past.session(past.remember("web-1", "owner", value))
    past.session(past.action("read_file", {"path": "web-1.log"}, "web-1 is up"))

    async def seen():
        memory = past.memory()
        await memory.compact("triage", scope="triage")
        context = await memory.assemble(ask("who is the owner of web-1"))
        await memory.close()
        return context

    context = asyncio.run(seen())
    assert "owner: data" in context.text
    told = [line for line in context.text.splitlines() if "owner: ops" in line]
    assert told
    assert all("no longer so" in line for line in told)


def test_a_fact_whose_proposal_is_erased_is_gone_before_and_after_a_rebuild(past):
    past.session(past.remember("web-1", "owner", "ops"))
    (proposed,) = past.ledger.reader.events(types=["action.proposed"])

    async def known():
        memory = past.memory()
        await memory.compact("triage", scope="triage")
        facts = await memory.facts("triage")
        await memory.close()
        return facts

    assert len(asyncio.run(known())) == 1
    erase(past.ledger, [proposed.seq], reason="private")
    assert asyncio.run(known()) == []
    (past.directory / "memory.db").unlink()
    assert asyncio.run(known()) == []


async def test_a_correction_counts_before_memory_has_read_it_and_once(past, ask):
    past.session(past.remember("web-1", "owner", "ops"))
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    past.correct("web-1", "owner", "data")
    for _ in range(2):
        context = await memory.assemble(ask("who is the owner of web-1"))
        assert "web-1 — owner: data" in context.text
        assert all("no longer so" in line for line in context.text.splitlines() if "owner: ops" in line)
    assert [(fact.value, fact.confirmed) for fact in await memory.facts("triage")] == [("data", 1)]
    await memory.compact("triage", scope="triage")
    assert "web-1 — owner: data" in (await memory.assemble(ask("who is the owner of web-1"))).text
    assert [(fact.value, fact.confirmed) for fact in await memory.facts("triage")] == [("data", 1)]
    await memory.close()


async def test_what_recall_returns_says_how_the_fact_in_it_stands(past):
    past.session(past.remember("web-1", "owner", "ops"), past.remember("web-2", "owner", "ops"))
    past.session(past.action("read_file", {"path": "owner.txt"}, "web-1 and its owner"))
    past.correct("web-1", "owner", "data")
    memory = past.memory()
    await memory.compact("triage", scope="triage")
    past.session(past.remember("web-1", "owner", "mallory"))
    await memory.compact("triage", scope="triage")
    past.correct("web-2", "owner", "data")  # and this no compaction has read
    standings = {
        each.text: each.standing for each in await memory.recall("triage", "who is the owner of web-1 or web-2")
    }
    await memory.close()
    by_words = {text: standing for text, standing in standings.items() if "owner: " in text}
    assert by_words == {
        "web-1 — owner: ops": "superseded",
        "web-1 — owner: mallory": "disputed",
        "web-2 — owner: ops": "superseded",
        "a person (uid 0) corrected: web-1 — owner: data": "current",
    }
    assert [standing for text, standing in standings.items() if "read_file" in text] == [None]
