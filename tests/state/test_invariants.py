"""What may follow what: each rule refused by name, and hypothesis looking for a way around them."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perdure.errors import PerdureError
from perdure.state import events as e
from perdure.state import projections as p
from perdure.state.ledger import Ledger, LedgerRefused

from .conftest import MINUTE


@contextlib.contextmanager
def refused(ledger: Ledger, rule: str):
    head = ledger.head
    with pytest.raises(LedgerRefused) as info:
        yield
    assert info.value.rule == rule
    assert ledger.reader.head() == head, "a refused event was written"


@pytest.fixture
def open_session(story):
    story.create()
    return story.session()


# -- no decision, no execution ----------------------------------------------------------------------------------------


def test_no_intent_without_a_decision(story, open_session):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session))
    with refused(ledger, "undecided"):
        ledger.commit(story.intent("A", open_session))
    for decided in ("escalate", "deny"):
        ledger.commit(story.decision("A", open_session, decided))
        with refused(ledger, "undecided"):
            ledger.commit(story.intent("A", open_session))
    row = p.action(ledger.reader, "A")
    assert (row.decision, row.state, row.seq_intended) == ("deny", "denied", None)


def test_no_intent_for_what_was_never_proposed(story, open_session):
    with refused(story.ledger, "no-such-action"):
        story.ledger.commit(story.intent("A", open_session))
    assert p.action(story.ledger.reader, "A") is None


@pytest.mark.parametrize("field", [{"digest": "sha256:x"}, {"tool": "other"}, {"effect": "once"}, {"task": "other"}])
def test_the_intent_is_for_exactly_what_was_decided(story, open_session, field):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session), story.decision("A", open_session))
    with refused(ledger, "session-mismatch" if "task" in field else "action-mismatch"):
        ledger.commit(story.intent("A", open_session, **field))
    row = p.action(ledger.reader, "A")
    assert (row.decision, row.state, row.seq_intended) == ("auto", "decided", None)


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({}, None),
        ({"decision": {"decided": "escalate"}}, "undecided"),
        ({"decision": {"decided": "deny"}}, "undecided"),
        ({"decision": {"action": "B"}}, "no-such-action"),
        ({"decision": {"task": "other"}}, "action-mismatch"),
        ({"intent": {"action": "B"}}, "no-such-action"),
        ({"intent": {"session": "B"}}, "no-such-session"),
        ({"intent": {"task": "other"}}, "session-mismatch"),
        ({"intent": {"tool": "other"}}, "action-mismatch"),
        ({"intent": {"effect": "once"}}, "action-mismatch"),
        ({"intent": {"digest": "sha256:x"}}, "action-mismatch"),
        ({"intent": {"attempt": 2}}, "attempt-number"),
        ({"intent": {"approval": "Q"}}, "no-such-escalation"),
        ({"proposal": {"action": "known"}}, "action-known"),
        ({"proposal": {"session": "B"}}, "no-such-session"),
        ({"proposal": {"task": "other"}}, "session-mismatch"),
        ({"proposal": {"key": "steps[0]", "step": 7, "confidence": 0.25}}, None),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_an_action_that_begins_in_one_commit_is_held_to_the_same_rules(story, open_session, changed, rule, together):
    ledger = story.ledger
    ledger.commit(story.proposal("known", open_session))
    drafts = [
        getattr(story, what)(**{"action": "A", "session": open_session, **changed.get(what, {})})
        for what in ("proposal", "decision", "intent")
    ]
    with pytest.raises(LedgerRefused) if rule else contextlib.nullcontext() as info:
        for commit in [drafts] if together else [[draft] for draft in drafts]:
            ledger.commit(*commit)
    if rule:
        assert info.value.rule == rule
        assert not together or p.action(ledger.reader, "A") is None
    else:
        row = p.action(ledger.reader, "A")
        assert (row.decision, row.state, row.attempt, row.attempt_session) == ("auto", "intended", 1, open_session)
        assert [getattr(row, name) for name in ("step", "tool", "key", "effect", "digest", "confidence")] == [
            getattr(drafts[0], name) for name in ("step", "tool", "key", "effect", "digest", "confidence")
        ]
        head = ledger.head.seq
        assert (row.seq_proposed, row.seq_intended, row.seq_ended) == (head - 2, head, None)
    assert story.verify().ok  # which replays the events one by one


def test_one_attempt_at_a_time_and_one_outcome_each(story, open_session):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session), story.decision("A", open_session))
    with refused(ledger, "no-intent"):
        ledger.commit(story.outcome("A", open_session))
    ledger.commit(story.intent("A", open_session))
    with refused(ledger, "intent-open"):
        ledger.commit(story.intent("A", open_session, attempt=2))
    with refused(ledger, "attempt-number"):
        ledger.commit(story.outcome("A", open_session, attempt=2))
    ledger.commit(story.outcome("A", open_session))
    with refused(ledger, "no-intent"):
        ledger.commit(story.outcome("A", open_session))
    with refused(ledger, "action-ended"):
        ledger.commit(story.intent("A", open_session, attempt=2))
    with refused(ledger, "not-unknown"):
        ledger.commit(story.outcome("A", open_session, settles=True))
    row = p.action(ledger.reader, "A")
    assert (row.state, row.status, row.attempt) == ("ended", "succeeded", 1)
    assert p.open_intents(ledger.reader) == []


@pytest.mark.parametrize("effect", ["read", "idempotent", "probeable", "once"])
def test_an_unknown_attempt_is_repeated_only_where_that_is_safe(story, open_session, effect):
    ledger = story.ledger
    ledger.commit(
        story.proposal("A", open_session, effect=effect),
        story.decision("A", open_session),
        story.intent("A", open_session, effect=effect),
    )
    ledger.commit(story.outcome("A", open_session, "unknown"))
    assert [action.action for action in p.unknown_actions(ledger.reader)] == ["A"]
    if effect == "once":
        with refused(ledger, "no-authority"):
            ledger.commit(story.intent("A", open_session, effect=effect, attempt=2))
    else:
        ledger.commit(story.intent("A", open_session, effect=effect, attempt=2))
        ledger.commit(story.outcome("A", open_session, attempt=2))
        assert p.unknown_actions(ledger.reader) == []


def test_an_unknown_outcome_is_settled_once(story, open_session):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session), story.decision("A", open_session), story.intent("A", open_session))
    ledger.commit(story.outcome("A", open_session, "unknown"))
    with refused(ledger, "still-unknown"):
        ledger.commit(story.outcome("A", open_session, "unknown", settles=True))
    ledger.commit(story.outcome("A", open_session, "failed", settles=True))
    with refused(ledger, "not-unknown"):
        ledger.commit(story.outcome("A", open_session, "succeeded", settles=True))
    assert p.action(ledger.reader, "A").status == "failed"


# -- approvals --------------------------------------------------------------------------------------------------------


def test_an_approval_authorises_one_attempt(story, open_session):
    ledger = story.ledger
    action, question = story.ask(open_session)
    with refused(ledger, "not-approved"):
        ledger.commit(story.intent(action, open_session, approval=question))
    ledger.commit(story.answer(question))
    ledger.commit(story.intent(action, open_session, approval=question))
    assert p.escalation(ledger.reader, question).state == "used"
    ledger.commit(story.outcome(action, open_session, "unknown"))
    with refused(ledger, "not-approved"):
        ledger.commit(story.intent(action, open_session, attempt=2, approval=question))
    with refused(ledger, "no-authority"):
        ledger.commit(story.intent(action, open_session, attempt=2))
    ledger.commit(story.decision(action, open_session, "escalate"), story.question("again", action, open_session))
    ledger.commit(story.answer("again"))
    ledger.commit(story.intent(action, open_session, attempt=2, approval="again"))
    assert [p.escalation(ledger.reader, each).state for each in (question, "again")] == ["used", "used"]
    assert p.action(ledger.reader, action).attempt == 2


def test_an_approval_of_another_action_authorises_nothing(story, open_session):
    ledger = story.ledger
    first, question = story.ask(open_session)
    second, _ = story.ask(open_session, digest="sha256:other")
    ledger.commit(story.answer(question))
    with refused(ledger, "action-mismatch"):
        ledger.commit(story.intent(second, open_session, digest="sha256:other", approval=question))
    with refused(ledger, "no-such-escalation"):
        ledger.commit(story.intent(first, open_session, approval="forged"))
    assert p.escalation(ledger.reader, question).state == "approved"
    assert p.open_intents(ledger.reader) == []


def test_a_denied_question_authorises_nothing(story, open_session):
    ledger = story.ledger
    action, question = story.ask(open_session)
    ledger.commit(story.answer(question, "deny"))
    assert p.action(ledger.reader, action).state == "denied"
    with refused(ledger, "not-awaiting"):
        ledger.commit(story.intent(action, open_session, approval=question))
    with refused(ledger, "escalation-answered"):
        ledger.commit(story.answer(question))
    assert p.open_intents(ledger.reader) == []


def test_policies_in_force_now_override_an_approval(story, open_session):
    ledger = story.ledger
    action, question = story.ask(open_session)
    ledger.commit(story.answer(question))
    ledger.commit(story.decision(action, open_session, "deny"))
    with refused(ledger, "denied"):
        ledger.commit(story.intent(action, open_session, approval=question))
    assert p.open_intents(ledger.reader) == []
    assert p.action(ledger.reader, action).decision == "deny"


def test_nothing_is_approved_or_used_after_expiry(story, open_session):
    ledger = story.ledger
    late, late_question = story.ask(open_session)
    unused, unused_question = story.ask(open_session, digest="sha256:2")
    with refused(ledger, "not-expired"):
        ledger.commit(e.EscalationExpired(escalation=late_question, task="triage", default="deny"))
    ledger.commit(story.answer(unused_question))
    story.at += 60 * MINUTE
    with refused(ledger, "expired"):
        ledger.commit(story.answer(late_question))
    with refused(ledger, "expired"):
        ledger.commit(story.intent(unused, open_session, digest="sha256:2", approval=unused_question))
    with refused(ledger, "wrong-default"):
        ledger.commit(e.EscalationExpired(escalation=late_question, task="triage", default="approve"))
    for question in (late_question, unused_question):
        ledger.commit(e.EscalationExpired(escalation=question, task="triage", default="deny"))
    story.at -= 120 * MINUTE  # the clock jumps back: what is recorded as expired stays so
    with refused(ledger, "escalation-answered"):
        ledger.commit(story.answer(late_question))
    with refused(ledger, "not-awaiting"):
        ledger.commit(story.intent(unused, open_session, digest="sha256:2", approval=unused_question))
    assert p.action(ledger.reader, late).state == "denied"


def test_silence_that_approves_does_so_for_a_while_and_once(story, open_session):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session), story.decision("A", open_session, "escalate"))
    ledger.commit(story.question("E", "A", open_session, on_expiry="approve", expires=story.at + 10 * MINUTE))
    story.at += 10 * MINUTE
    ledger.commit(e.EscalationExpired(escalation="E", task="triage", default="approve"))
    story.at += 11 * MINUTE
    with refused(ledger, "expired"):
        ledger.commit(story.intent("A", open_session, approval="E"))
    story.at -= 5 * MINUTE
    ledger.commit(story.intent("A", open_session, approval="E"))
    assert p.escalation(ledger.reader, "E").state == "used"
    assert [row.action for row in p.open_intents(ledger.reader)] == ["A"]


def test_the_same_question_is_joined_not_asked_again(story, open_session):
    ledger = story.ledger
    _first, question = story.ask(open_session)
    ledger.commit(story.proposal("B", open_session), story.decision("B", open_session, "escalate"))
    with refused(ledger, "must-join"):
        ledger.commit(story.question("E2", "B", open_session))
    ledger.commit(e.EscalationJoined(escalation=question, action="B", session=open_session, task="triage"))
    assert p.escalation(ledger.reader, question).joined == 1
    ledger.commit(story.answer(question))
    with refused(ledger, "not-awaiting"):  # the joined action ends with the question
        ledger.commit(story.intent("B", open_session, approval=question))
    assert p.open_intents(ledger.reader) == []


def test_an_approved_action_runs_in_the_resuming_session_only(story, open_session):
    ledger = story.ledger
    action, question = story.ask(open_session)
    ledger.commit(story.closing(open_session, status="parked"), story.answer(question))
    with refused(ledger, "session-closed"):
        ledger.commit(story.intent(action, open_session, approval=question))
    stranger = story.session()
    with refused(ledger, "not-resuming"):
        ledger.commit(story.intent(action, stranger, approval=question))
    ledger.commit(story.closing(stranger))
    resumed = story.session(resumes=open_session, escalation=question)
    ledger.commit(story.intent(action, resumed, approval=question))
    with refused(ledger, "intent-open"):
        ledger.commit(story.closing(resumed))
    assert [row.action for row in p.open_intents(ledger.reader)] == [action]
    started = p.call_times(ledger.reader, "write_file", 0)
    assert p.successes(ledger.reader, "triage", "write_file") == (0, 0)
    ledger.commit(story.outcome(action, resumed))
    assert p.successes(ledger.reader, "triage", "write_file") == (1, 1)
    ledger.commit(story.closing(resumed))
    assert p.successes(ledger.reader, "triage", "write_file") == (1, 1)
    assert p.call_times(ledger.reader, "write_file", 0) == started == [p.action(ledger.reader, action).intended_at]


# -- sessions, slots, calls, grants -----------------------------------------------------------------------------------


def test_a_task_has_one_session_at_a_time(story, open_session):
    ledger = story.ledger
    with refused(ledger, "session-open"):
        ledger.commit(story.opening("S9", "triage", "triage/manual/9"))
    story.session("another")
    ledger.commit(story.closing(open_session))
    with refused(ledger, "session-closed"):
        ledger.commit(story.closing(open_session))
    with refused(ledger, "session-known"):
        ledger.commit(story.opening(open_session, "triage", "triage/manual/9"))
    with refused(ledger, "session-closed"):
        ledger.commit(story.proposal("A", open_session))
    assert [row.task for row in p.open_sessions(ledger.reader)] == ["another"]
    assert p.action(ledger.reader, "A") is None


def test_a_session_does_not_close_over_an_open_intent(story, open_session):
    ledger = story.ledger
    ledger.commit(story.proposal("A", open_session), story.decision("A", open_session), story.intent("A", open_session))
    with refused(ledger, "intent-open"):
        ledger.commit(story.closing(open_session))
    assert [action.action for action in p.open_intents(ledger.reader)] == ["A"]
    ledger.commit(story.outcome("A", open_session, "unknown"), story.closing(open_session, status="interrupted"))
    assert p.open_intents(ledger.reader) == []


def slot(due: int, kind: str = "scheduled") -> dict:
    return {"slot": f"triage/{kind}/{due}", "task": "triage", "kind": kind, "due": due}


def test_a_slot_opens_once_and_closes_once(story):
    ledger = story.create()
    ledger.commit(e.SlotOpened(**slot(100)))
    with refused(ledger, "slot-known"):
        ledger.commit(e.SlotOpened(**slot(100)))
    with refused(ledger, "slot-mismatch"):
        ledger.commit(e.SlotClosed(**{**slot(100), "due": 101}, outcome="ran"))
    ledger.commit(e.SlotClosed(**slot(100), outcome="ran"))
    with refused(ledger, "slot-closed"):
        ledger.commit(e.SlotClosed(**slot(100), outcome="missed"))
    with refused(ledger, "slot-known"):
        ledger.commit(e.SlotOpened(**slot(100)))
    with refused(ledger, "slot-closed"):
        ledger.commit(story.opening("S", "triage", "triage/scheduled/100"))
    (row,) = p.slots(ledger.reader)
    assert (row.due, row.outcome) == (100, "ran")


def test_a_range_of_missed_firings_is_one_slot_and_overlaps_none(story):
    ledger = story.create()
    ledger.commit(e.SlotClosed(**slot(100), last_due=200, count=11, outcome="missed"))
    for due in (100, 150, 200):
        with refused(ledger, "slot-known" if due == 100 else "slot-overlap"):
            ledger.commit(e.SlotOpened(**slot(due)))
    with refused(ledger, "slot-overlap"):
        ledger.commit(e.SlotClosed(**slot(50), last_due=100, count=3, outcome="missed"))
    with refused(ledger, "slot-range"):
        ledger.commit(e.SlotClosed(**slot(300), last_due=250, count=2, outcome="missed"))
    ledger.commit(e.SlotOpened(**slot(201)), e.SlotOpened(**slot(150, "watch")))
    last = p.last_slot(ledger.reader, "triage", "scheduled")
    assert (last.due, last.outcome) == (201, None)
    assert [row.due for row in p.slots(ledger.reader, open_only=True)] == [150, 201]


def test_a_model_call_is_reserved_and_settled_once(story, open_session):
    ledger = story.ledger
    ask = e.ModelRequested(
        session=open_session,
        task="triage",
        call="C",
        model="m",
        purpose="propose",
        prompt_tokens=9,
        completion_cap=1,
        reserved_tokens=10,
        reserved_usd=0.25,
    )
    reply = e.ModelReplied(
        session=open_session, task="triage", call="C", status="replied", charged_tokens=4, charged_usd=0.125
    )
    with refused(ledger, "call-settled"):
        ledger.commit(reply)
    ledger.commit(ask)
    assert p.spend(ledger.reader, 0) == p.Spend(10, 0.25)
    assert [call.call for call in p.open_calls(ledger.reader)] == ["C"]
    with refused(ledger, "call-known"):
        ledger.commit(ask)
    ledger.commit(reply)
    assert p.spend(ledger.reader, 0, "triage") == p.Spend(4, 0.125)
    assert p.spend(ledger.reader, 0, "other") == p.spend(ledger.reader, story.at + 1) == p.Spend(0, 0.0)
    with refused(ledger, "call-settled"):
        ledger.commit(reply)


def test_a_grant_is_in_force_until_revoked_once(story):
    ledger = story.create()
    given = e.GrantGiven(grant="G", task="triage", tool="t", rule="r", uid=1, payload={"pattern": {"path": "a*"}})
    ledger.commit(given)
    with refused(ledger, "grant-known"):
        ledger.commit(given)
    assert [grant.pattern for grant in p.grants(ledger.reader, "triage")] == [{"path": "a*"}]
    ledger.commit(e.GrantRevoked(grant="G", uid=1))
    assert p.grants(ledger.reader) == []
    assert len(p.grants(ledger.reader, active_only=False)) == 1
    with refused(ledger, "no-such-grant"):
        ledger.commit(e.GrantRevoked(grant="G", uid=1))


def test_pauses_of_one_task_and_of_all(story):
    ledger = story.create()
    ledger.commit(e.Paused(task="triage", by="uid:0", reason="holiday"))
    assert (p.paused(ledger.reader, "triage"), p.paused(ledger.reader, "other")) == ("holiday", None)
    ledger.commit(e.Paused(by="breaker", reason="too much"))
    ledger.commit(e.Resumed(task="triage", by="uid:0"))
    assert p.paused(ledger.reader, "triage") == p.paused(ledger.reader, "other") == "too much"


def test_successes_count_outcomes_and_contradictions_also_after_their_session(story, open_session):
    ledger = story.ledger

    def successes():
        return p.successes(ledger.reader, "triage", "write_file")

    assert successes() == (0, 0)
    ids = [story.act(open_session) for _ in range(4)]
    assert successes() == (4, 4)
    contradiction = {"session": open_session, "task": "triage", "verifier": "v", "passed": False}
    ledger.commit(e.ActionVerified(action=ids[0], **contradiction))
    ledger.commit(e.ActionVerified(action=ids[0], **contradiction))
    assert successes() == (4, 3)
    for action in ("U", "V"):
        ledger.commit(story.proposal(action, open_session), story.decision(action, open_session))
        ledger.commit(story.intent(action, open_session))
        ledger.commit(story.outcome(action, open_session, "unknown"))
    assert successes() == (6, 3)
    ledger.commit(story.outcome("U", open_session, settles=True))
    assert successes() == (6, 4)
    ledger.commit(story.closing(open_session, status="interrupted"))
    assert successes() == (6, 4)
    ledger.commit(e.ActionVerified(action=ids[1], **contradiction))
    ledger.commit(e.ActionVerified(action=ids[1], **contradiction))
    assert successes() == (6, 3)
    ledger.commit(story.outcome("V", open_session, settles=True))
    assert successes() == (6, 4)
    assert len(p.call_times(ledger.reader, "write_file", 0)) == 6
    assert p.call_times(ledger.reader, "write_file", story.at + 1) == []


def test_ids_are_found_by_either_end(story, open_session):
    story.ledger.commit(story.proposal("01ABCDEF", open_session), story.proposal("01ABXYEF", open_session))
    reader = story.ledger.reader
    assert p.resolve(reader, "action", "01abc") == p.resolve(reader, "action", "cdef") == "01ABCDEF"
    for text, hint in (
        ("01AB", "several fit"),
        ("nothing", "no id"),
        ("", "no id"),
        ("%", "no id"),
        ("01AB____", "no id"),
    ):
        with pytest.raises(PerdureError, match=hint):
            p.resolve(reader, "action", text)


# -- a search for a way around ----------------------------------------------------------------------------------------


class Journal(RuleBasedStateMachine):
    """Any event may come at any time, with ids and fields from small pools. Whatever the ledger takes must keep to the rules,
    which this class states once more, from the accepted events alone."""

    story_factory = None

    @initialize()
    def begin(self):
        self.story = type(self).story_factory()
        self.ledger = self.story.create()
        self.accepted: list[e.Event] = []
        self.ledger.subscribe(self.accepted.extend)

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        stored = self.ledger.reader.connection
        head = self.ledger.head
        assert [event.seq for event in self.ledger.reader.events()] == list(range(1, head.seq + 1))
        self.story.close()
        del stored
        report = self.story.verify()
        assert report.ok, report.findings
        for file in self.story.directory.iterdir():
            file.unlink()

    def attempt(self, *drafts):
        with contextlib.suppress(LedgerRefused):
            self.ledger.commit(*drafts)

    actions = st.sampled_from(["A1", "A2"])
    sessions = st.sampled_from(["S1", "S2"])
    questions = st.sampled_from(["E1", "E2"])
    digests = st.sampled_from(["sha256:1", "sha256:2"])
    effects = st.sampled_from(["idempotent", "once"])

    @rule(session=sessions, resumes=st.sampled_from([None, "S1"]))
    def open_session(self, session, resumes):
        self.attempt(self.story.opening(session, "triage", f"triage/manual/{session}", resumes=resumes))

    @rule(session=sessions)
    def close_session(self, session):
        self.attempt(self.story.closing(session))

    @rule(
        action=actions,
        session=sessions,
        digest=digests,
        effect=effects,
        decided=st.sampled_from(["auto", "escalate", "deny", None]),
    )
    def propose(self, action, session, digest, effect, decided):
        self.attempt(
            self.story.proposal(action, session, digest=digest, effect=effect),
            *([] if decided is None else [self.story.decision(action, session, decided)]),
        )

    @rule(action=actions, session=sessions, digest=digests, effect=effects, decided=st.sampled_from(["auto", "deny"]))
    def begin_at_once(self, action, session, digest, effect, decided):
        self.attempt(
            self.story.proposal(action, session, digest=digest, effect=effect),
            self.story.decision(action, session, decided),
            self.story.intent(action, session, digest=digest, effect=effect),
        )

    @rule(action=actions, session=sessions, passed=st.booleans())
    def verify(self, action, session, passed):
        self.attempt(e.ActionVerified(action=action, session=session, task="triage", verifier="v", passed=passed))

    @rule(action=actions, session=sessions, decided=st.sampled_from(["auto", "escalate", "deny"]))
    def decide(self, action, session, decided):
        self.attempt(self.story.decision(action, session, decided))

    @rule(
        action=actions,
        session=sessions,
        digest=digests,
        effect=effects,
        attempt=st.integers(1, 3),
        approval=st.none() | questions,
    )
    def intend(self, action, session, digest, effect, attempt, approval):
        self.attempt(
            self.story.intent(action, session, digest=digest, effect=effect, attempt=attempt, approval=approval)
        )

    @rule(
        action=actions,
        session=sessions,
        attempt=st.integers(1, 3),
        status=st.sampled_from(["succeeded", "failed", "unknown"]),
        settles=st.sampled_from([None, True]),
    )
    def end(self, action, session, attempt, status, settles):
        self.attempt(self.story.outcome(action, session, status, attempt=attempt, settles=settles))

    @rule(
        action=actions,
        session=sessions,
        question=questions,
        digest=digests,
        on_expiry=st.sampled_from(["deny", "approve"]),
    )
    def ask(self, action, session, question, digest, on_expiry):
        self.attempt(
            self.story.question(
                question, action, session, digest=digest, on_expiry=on_expiry, expires=self.story.at + 10 * MINUTE
            )
        )

    @rule(question=questions, action=actions, session=sessions)
    def join(self, question, action, session):
        self.attempt(e.EscalationJoined(escalation=question, action=action, session=session, task="triage"))

    @rule(question=questions, answer=st.sampled_from(["approve", "deny"]))
    def answer(self, question, answer):
        self.attempt(self.story.answer(question, answer))

    @rule(question=questions, default=st.sampled_from(["deny", "approve"]))
    def expire(self, question, default):
        self.attempt(e.EscalationExpired(escalation=question, task="triage", default=default))

    @rule(minutes=st.sampled_from([-15, 4, 15]))
    def let_time_pass(self, minutes):
        self.story.at += minutes * MINUTE

    @rule(seq=st.integers(1, 30))
    def erase(self, seq):
        self.attempt(e.PayloadErased(erased=seq, reason="test"))

    @precondition(lambda self: hasattr(self, "accepted"))
    @invariant()
    def every_accepted_event_was_allowed(self):
        check(self.accepted)

    @precondition(lambda self: hasattr(self, "accepted"))
    @invariant()
    def what_is_found_through_sessions_is_what_a_look_at_every_action_finds(self):
        reader = self.ledger.reader
        rows = sorted(p.actions(reader), key=lambda row: row.seq_intended or 0)
        assert p.open_intents(reader) == [row for row in rows if row.state == "intended"]
        started = sorted(row.intended_at for row in rows if row.intended_at is not None)
        assert p.call_times(reader, "write_file", 0) == started
        if started:
            assert p.call_times(reader, "write_file", started[-1]) == [at for at in started if at == started[-1]]
        tried = [row for row in rows if row.status is not None or row.attempt > 1]
        succeeded = [row for row in tried if row.status == "succeeded" and row.verified is not False]
        assert p.successes(reader, "triage", "write_file") == (len(tried), len(succeeded))


def check(events: list[e.Event]) -> None:
    """The rules once more, by a reading of the whole history (quadratic and simple on purpose)."""
    proposed: dict[str, e.Event] = {}
    decision: dict[str, str] = {}
    open_attempt: dict[str, int] = {}
    runs_in: dict[str, str] = {}  # open attempt -> its session
    last_status: dict[str, str] = {}
    questions: dict[str, e.Event] = {}
    open_sessions: set[str] = set()
    approved_until: dict[str, int] = {}
    denied: set[str] = set()
    used: set[str] = set()
    for event in events:
        body, action = event.body, event.body.get("action")
        match event.type:
            case "session.opened":
                assert not open_sessions, "two sessions of one task"
                open_sessions.add(body["session"])
            case "session.closed":
                open_sessions.remove(body["session"])
                assert body["session"] not in runs_in.values(), "closed over an open attempt"
            case "action.proposed":
                assert action not in proposed
                proposed[action] = event
            case "action.decided":
                decision[action] = body["decision"]
            case "action.intended":
                assert action not in open_attempt, "two open attempts"
                assert last_status.get(action, "unknown") == "unknown", "an ended action ran again"
                assert body["session"] in open_sessions
                assert body["digest"] == proposed[action].body["digest"]
                assert decision[action] != "deny"
                if (approval := body.get("approval")) is not None:
                    assert approval not in used, "one approval, two attempts"
                    assert questions[approval].body["action"] == action
                    assert questions[approval].body["digest"] == body["digest"]
                    assert event.at < approved_until[approval], "used after expiry"
                    used.add(approval)
                else:
                    assert decision[action] == "auto", "ran without decision or approval"
                    assert action not in denied
                    assert body["attempt"] == 1 or proposed[action].body["effect"] != "once", "repeated blindly"
                open_attempt[action] = body["attempt"]
                runs_in[action] = body["session"]
            case "action.ended":
                if body.get("settles"):
                    assert last_status[action] == "unknown"
                    assert body["status"] != "unknown"
                else:
                    assert open_attempt.pop(action) == body["attempt"]
                    del runs_in[action]
                last_status[action] = body["status"]
            case "escalation.opened":
                for other in questions.values():
                    if other.body["digest"] == body["digest"]:
                        assert other.body["escalation"] in approved_until or other.body["escalation"] in denied, (
                            "asked twice"
                        )
                questions[body["escalation"]] = event
            case "escalation.answered":
                question = questions[body["escalation"]]
                assert body["escalation"] not in approved_until
                assert body["escalation"] not in denied
                assert event.at < question.body["expires"]
                if body["answer"] == "approve":
                    approved_until[body["escalation"]] = question.body["expires"]
                else:
                    denied.add(body["escalation"])
                    if (
                        question.body["action"] not in open_attempt
                        and question.body["action"] not in last_status
                        and decision[question.body["action"]] == "escalate"
                    ):
                        denied.add(question.body["action"])
            case "escalation.expired":
                question = questions[body["escalation"]]
                assert body["escalation"] not in denied
                if body["default"] == "approve":
                    assert body["escalation"] not in approved_until
                    approved_until[body["escalation"]] = event.at + question.body["expires"] - question.at
                else:
                    approved_until.pop(body["escalation"], None)
                    denied.add(body["escalation"])
            case "payload.erased":
                target = events_by_seq(events, body["erased"])
                assert target is None or target.body.get("action") not in open_attempt


def events_by_seq(events: list[e.Event], seq: int) -> e.Event | None:
    return next((event for event in events if event.seq == seq), None)


def test_no_order_of_events_gets_around_the_rules(new_story):
    Journal.story_factory = staticmethod(new_story)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Journal,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_projections_can_be_made_anew_in_place(story):
    from perdure.state.backup import rebuild_projections

    story.live()
    story.close()

    def dump():
        with contextlib.closing(sqlite3.connect(story.path)) as db:
            return sorted(line for line in db.iterdump() if not line.startswith("CREATE"))

    before = dump()
    with contextlib.closing(sqlite3.connect(story.path)) as db, db:
        db.execute("UPDATE actions SET status = 'failed'")
        db.execute("DROP TABLE sessions")
    assert "projection-differs" in story.kinds()
    with pytest.raises(PerdureError, match="perdure ledger rebuild"):
        story.open()
    seen = []
    rebuild_projections(story.directory, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert dump() == before
    assert story.verify().ok
