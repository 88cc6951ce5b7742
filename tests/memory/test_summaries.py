"""Summaries keep what matters, lead back to their records, and a model's is kept only when nothing was lost or invented."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.memory import tokens
from perdure.memory.rows import Record
from perdure.memory.summaries import Extractive
from perdure.memory.summary_checks import identifiers, violations


def record(seq, text, kind="action", speaker="tool", untrusted=False):
    return Record(
        id=f"r{seq}", seq=seq, at=1_790_000_000_000_000 + seq * 60_000_000, task="triage", session="S", kind=kind, speaker=speaker,
        untrusted=untrusted, text=text, tokens=tokens.count(text), sources=(seq,),
    )  # fmt: skip


RECORDS = [
    record(
        1, 'read_file(path="inbox/auth.log") succeeded: 7121 lines about failed logins from many places', untrusted=True
    ),
    record(2, 'run_command(argv=["backup"]) failed: exit 75 on db-1', kind="failure"),
    record(3, 'needs a person\'s answer: block_ip(ip="203.0.113.7")', kind="question", speaker="perdure"),
]
GOOD = "## Done\n- read inbox/auth.log [r1]\n## Failed\n- backup on db-1 [r2]\n## Open\n- block 203.0.113.7? [r3]"


def test_a_faithful_summary_is_kept():
    assert violations(GOOD, RECORDS, 400) == []


def test_each_way_to_be_wrong_is_named():
    for change, word in (
        (("## Open", "## Later"), "headings are missing: Open"),
        (("203.0.113.7", "the attacker"), "are lost: 203.0.113.7"),
        (("db-1", "db-2"), "does not have: db-2"),
        (("[r2]", ""), "1 lines name no record"),
        (("[r1]", "[r99] [r1]"), "not given: r99"),
        (("- read", "- " + "read " * 300), "tokens, and may have"),
    ):
        assert any(word in violation for violation in violations(GOOD.replace(*change), RECORDS, 400)), (change, word)


def test_people_and_failures_outlive_routine():
    routine = [
        record(n, f'read_file(path="inbox/{n}.log") succeeded: {n} lines', untrusted=True) for n in range(10, 400)
    ]
    said = record(
        500, 'a person (uid 1000) denied block_ip(ip="198.51.100.9"): it is our VPN', kind="answer", speaker="person"
    )
    draft = Extractive().summarise([*routine, *RECORDS, said], 240)
    assert tokens.count(draft.text) <= 240
    assert "it is our VPN" in draft.text
    assert "exit 75 on db-1" in draft.text
    assert "block_ip" in draft.text
    assert "×" in draft.text  # 390 reads are one line
    assert draft.untrusted


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=400), st.sampled_from(["action", "failure", "closing", "answer"])),
        min_size=1,
        max_size=30,
    ),
    st.integers(20, 300),
)
def test_a_summary_never_exceeds_its_tokens_and_is_deterministic(said, tokens_max):
    records = [record(seq, text, kind) for seq, (text, kind) in enumerate(said, 1)]
    draft = Extractive().summarise(records, tokens_max)
    assert tokens.count(draft.text) <= tokens_max
    assert draft == Extractive().summarise(records, tokens_max)
    assert set(draft.covers) <= {each.id for each in records}


@pytest.mark.parametrize("text", ["a_" * 200_000, "1." * 200_000, "x/" * 200_000, "f" * 400_000, "-" * 400_000])
def test_looking_for_names_takes_no_longer_than_reading(text):
    assert len(identifiers(text)) <= 1  # with a pattern that backtracks this does not end


def test_what_a_name_is():
    text = (
        'block_ip(ip="203.0.113.7") on db-1:8080, see inbox/auth.log, v1.2.3, 7f3a9c01, 15 of 7121 [r12] (untrusted).'
    )
    assert identifiers(text) == {"203.0.113.7", "db-1", "8080", "inbox/auth.log", "v1.2.3", "7f3a9c01", "7121"}
