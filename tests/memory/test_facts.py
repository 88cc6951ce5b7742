"""Facts supersede, merge and dispute; nothing is averaged, and the order of the ledger decides."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from perdure.memory.facts import settle
from perdure.memory.store import Claim


def claim(seq, value, speaker="agent", task="triage", subject="web-1", attribute="owner"):
    return Claim(seq=seq, at=seq * 10, task=task, subject=subject, attribute=attribute, value=value, speaker=speaker)


def standing(facts):
    return [(fact.value, fact.standing) for fact in facts]


def test_a_newer_value_closes_the_older_one():
    old, new = settle([claim(1, "ops"), claim(2, "data")])
    assert (old.valid_to, old.superseded_by, old.standing) == (20, "f2", "superseded")
    assert (new.valid_from, new.valid_to, new.standing) == (20, None, "current")


def test_what_is_said_twice_is_one_fact():
    (fact,) = settle([claim(1, "Ops  team"), claim(2, "ops team", subject="WEB-1")])
    assert (fact.confirmed, fact.source) == (2, "#1 #2")


def test_an_agent_cannot_overrule_a_person():
    facts = settle([claim(1, "ops", "person"), claim(2, "attacker"), claim(3, "attacker")])
    assert standing(facts) == [("ops", "current"), ("attacker", "disputed")]
    assert facts[1].confirmed == 2


def test_a_person_settles_a_dispute():
    facts = settle([claim(1, "ops", "person"), claim(2, "data"), claim(3, "data", "person")])
    assert standing(facts) == [("ops", "superseded"), ("data", "superseded"), ("data", "current")]


def test_a_correction_for_every_task_counts_for_each():
    facts = settle([claim(1, "ops"), claim(2, "ops", task="other"), claim(3, "data", "person", task=None)])
    assert [fact.value for fact in facts if fact.standing == "current"] == ["data"]


def test_tasks_disagree_side_by_side():
    facts = settle([claim(1, "ops"), claim(2, "data", task="other")])
    assert standing(facts) == [("ops", "current"), ("data", "current")]


def test_tasks_that_share_their_memory_share_their_facts():
    facts = settle([claim(1, "ops"), claim(2, "OPS", task="other"), claim(3, "data", task="other")], shared=True)
    assert standing(facts) == [("ops", "superseded"), ("data", "current")]
    assert facts[0].confirmed == 2


def lines_run(facts):
    """How many lines of Python settling so many facts of tasks with one memory takes."""
    count = 0

    def trace(*_):
        nonlocal count
        count += 1
        return trace

    claims = [claim(number, "x", subject=f"host{number}") for number in range(facts)]
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        settle(claims, shared=True)
    finally:
        sys.settrace(before)
    return count


def test_settling_costs_what_the_facts_are_and_not_their_square():
    assert lines_run(400) < 5 * lines_run(100)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["agent", "person"])), min_size=1, max_size=12)
)
def test_exactly_one_value_is_current_and_it_is_the_last_of_the_highest_rank(said):
    facts = settle([claim(seq, value, speaker) for seq, (value, speaker) in enumerate(said, 1)])
    (current,) = [fact for fact in facts if fact.standing == "current"]
    of_people = [value for value, speaker in said if speaker == "person"]
    assert current.value == (of_people or [value for value, _ in said])[-1]
    assert all(fact.valid_to is not None for fact in facts if fact.standing == "superseded")
