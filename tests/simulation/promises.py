"""What must hold after every event, kept by a model of its own: it shares no code with the ledger's projections."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from perdure.state.events import Event

from .outside import BrokenPromise
from .workplace import TOKENS_PER_DAY, PolicyVersion

DAY = 86_400_000_000
HOLDS = {"sweep", "guard", "nightly", "hourly", "watcher"}  # while_parked: hold
STEPS_MAX = {"guard": 8, "audit": 6}
SLOT_OUTCOMES = {"ran", "late", "coalesced", "skipped", "missed", "refused", "held"}
STATUSES = {"succeeded", "unverified", "failed", "parked", "limited", "interrupted"}
REPEATABLE = {"read", "idempotent"}


@dataclass
class Session:
    task: str
    slot: str
    bounds: Mapping[str, Any]
    resumes: str | None
    charged: int = 0
    charged_usd: float = 0.0
    steps: int = 0
    checks: list[bool] = field(default_factory=list)
    status: str | None = None


@dataclass
class Slot:
    task: str
    kind: str
    due: int
    last_due: int
    count: int = 1
    outcome: str | None = None
    sessions: int = 0
    resumes: str | None = None


@dataclass
class Action:
    task: str
    session: str
    tool: str
    effect: str
    digest: str
    confidence: float
    args: Mapping[str, Any]
    decision: str | None = None
    attempts: int = 0
    running: int = 0  # the attempt that has an intent and no end
    in_session: str = ""
    status: str | None = None
    approvals: list[str] = field(default_factory=list)


@dataclass
class Question:
    action: str
    task: str
    digest: str
    expires: int
    opened: int
    on_expiry: str
    parks: bool
    state: str = "open"
    valid_until: int = 0


@dataclass
class Call:
    at: int
    session: str
    tokens: int
    usd: float


class Promises:
    """Sees every event of every life of the daemon, in order; raises BrokenPromise, naming the invariant's number."""

    def __init__(
        self, versions: Mapping[str, PolicyVersion], payload: Callable[[int], Any], happened: Callable[[str], bool]
    ) -> None:
        self.versions, self.payload, self.happened = versions, payload, happened
        self.seq, self.hash, self.at = 0, "", 0
        self.fence = 0
        self.sessions: dict[str, Session] = {}
        self.open_sessions: dict[str, str] = {}  # task -> session
        self.slots: dict[str, Slot] = {}
        self.actions: dict[str, Action] = {}
        self.running: set[str] = set()  # actions whose intent has no end yet
        self.unknown: set[str] = set()
        self.questions: dict[str, Question] = {}
        self.calls: dict[str, Call] = {}
        self.charges: deque[tuple[int, int]] = deque()
        self.grants: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
        self.paused: set[str] = set()
        self.must_go_on: set[str] = set()  # stopped tasks that a person let go on
        self.told: set[str] = set()
        self.must_tell: set[str] = set()
        self.reigns: list[tuple[str, str, int, int | None]] = []  # task, schedule, since, until
        self.in_force: list[str] = []  # digests of policies, the latest last
        self.changed_at = 0
        self.counts: Counter[str] = Counter()
        self.tail: deque[str] = deque(maxlen=25)

    def saw(self, events: tuple[Event, ...]) -> None:
        """The events of one commit."""
        for event in events:
            self.tail.append(f"{event.seq} {event.at} {event.type} {dict(event.body)}")
            self.must(event.seq == self.seq + 1, 7, f"event {event.seq} follows {self.seq}")
            self.seq, self.hash, self.at = event.seq, event.hash, event.at
            self.counts[event.type] += 1
            handler = getattr(self, "on_" + event.type.replace(".", "_"), None)
            if handler is not None:
                try:
                    handler(event, event.body)
                except (
                    LookupError
                ) as error:  # the ledger goes on past a subscriber that fails; this one must not be passed
                    raise BrokenPromise(f"this model: {event.type} names something unknown: {error!r}") from error
        self.must(not self.must_go_on, 3, f"approved, and still stopped: {sorted(self.must_go_on)}")

    @staticmethod
    def must(holds: bool, number: int, words: str) -> None:
        """The invariant of that number (of the design's list)."""
        if not holds:
            raise BrokenPromise(f"{number}: {words}")

    # -- the daemon and its files ------------------------------------------------------------------------------------

    def on_daemon_started(self, event: Event, body: Mapping[str, Any]) -> None:
        self.must(body["fence"] > self.fence, 5, f"fence {body['fence']} after {self.fence}")
        self.fence = body["fence"]

    def on_configuration_loaded(self, event: Event, body: Mapping[str, Any]) -> None:
        if body["kind"] == "policies":
            self.must(body["digest"] in self.versions, 10, "policies came into force that nobody wrote")
            self.in_force.append(body["digest"])
            self.changed_at = event.at

    def on_task_loaded(self, event: Event, body: Mapping[str, Any]) -> None:
        self._end_reign(body["task"], event.at, keep=body.get("schedule"))

    def on_task_removed(self, event: Event, body: Mapping[str, Any]) -> None:
        self._end_reign(body["task"], event.at, keep=None)

    def _end_reign(self, task: str, at: int, keep: str | None) -> None:
        for index, (name, schedule, since, until) in enumerate(self.reigns):
            if name == task and until is None:
                if schedule == keep:
                    return
                self.reigns[index] = (name, schedule, since, at)
        if keep is not None:
            self.reigns.append((task, keep, at, None))

    def on_paused(self, event: Event, body: Mapping[str, Any]) -> None:
        self.paused.add(body.get("task", ""))

    def on_resumed(self, event: Event, body: Mapping[str, Any]) -> None:
        task = body.get("task", "")
        self.paused.discard(task)
        self.must_go_on.discard(task)
        for question in self.questions.values():
            if question.task == task and not question.action and question.state in ("open", "approved"):
                question.state = "used"  # a task that goes on needs no answer to whether it may

    def on_notification_sent(self, event: Event, body: Mapping[str, Any]) -> None:
        self.told.add(body["about"])
        self.must_tell.discard(body["about"])

    # -- slots and sessions -------------------------------------------------------------------------------------------

    def on_slot_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        self.must(body["slot"] not in self.slots, 6, f"slot {body['slot']} opens twice")
        slot = Slot(body["task"], body["kind"], body["due"], body["due"], resumes=body.get("resumes"))
        self.slots[body["slot"]] = slot

    def on_slot_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        name, outcome = body["slot"], body["outcome"]
        self.must(outcome in SLOT_OUTCOMES, 6, f"slot {name} ends as {outcome}")
        slot = self.slots.setdefault(name, Slot(body["task"], body["kind"], body["due"], body["due"]))
        self.must(slot.outcome is None, 6, f"slot {name} ends as {slot.outcome} and as {outcome}")
        slot.outcome = outcome
        slot.last_due, slot.count = body.get("last_due", body["due"]), body.get("count", 1)
        if outcome in ("ran", "late"):
            session = self.sessions.get(body.get("session", ""))
            self.must(session is not None and session.slot == name, 6, f"slot {name} {outcome} without its session")
        else:
            self.must(bool(body.get("rule")), 6, f"slot {name} was {outcome} and no rule says why")
        if outcome == "held":
            waits = any(one.task == slot.task and one.parks and one.state == "open" for one in self.questions.values())
            self.must(waits, 6, f"slot {name} is held and no question of its task is open")

    def on_session_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        task, slot = body["task"], self.slots.get(body["slot"])
        self.must(body["session"] not in self.sessions, 5, "a session opens twice")
        self.must(task not in self.open_sessions, 5, f"two sessions of {task}")
        self.must(body["fence"] == self.fence, 5, f"a session of owner {body['fence']} while {self.fence} owns")
        self.must(
            slot is not None and slot.task == task and slot.outcome is None, 6, f"session for slot {body['slot']}"
        )
        assert slot is not None
        if slot.sessions == 0:
            self.must(task not in self.paused and "" not in self.paused, 6, f"{task} is paused and a session opens")
            if slot.kind != "resume" and task in HOLDS:
                waits = [
                    one for one in self.questions.values() if one.task == task and one.parks and one.state == "open"
                ]
                self.must(not waits, 6, f"{task} waits for a person and a session opens for {body['slot']}")
        self.must(body["bounds"]["steps"] <= STEPS_MAX.get(task, 20), 4, f"{task} may take {body['bounds']} steps")
        if body.get("resumes"):
            earlier = self.sessions[body["resumes"]]
            left = earlier.bounds["tokens"] - earlier.charged
            self.must(body["bounds"]["tokens"] <= max(0, left), 4, f"{task} resumes with more tokens than were left")
        slot.sessions += 1
        self.open_sessions[task] = body["session"]
        self.sessions[body["session"]] = Session(task, body["slot"], body["bounds"], body.get("resumes"))

    def on_session_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        session, status = self.sessions[body["session"]], body["status"]
        self.must(session.status is None and status in STATUSES, 2, f"session {body['session']} ends as {status}")
        self.must(self.open_sessions.pop(session.task, None) == body["session"], 5, "a session ends that was not open")
        session.status = status
        self.must(session.steps <= session.bounds["steps"], 4, f"{session.steps} steps of {session.bounds['steps']}")
        self.must(not body["reason"].startswith("defect"), 12, f"session {body['session']}: {body['reason']}")
        for name in self.running:
            self.must(self.actions[name].in_session != body["session"], 2, "a session ends before its intent")
        for name in self.unknown:
            if self.actions[name].in_session == body["session"] and status != "interrupted":
                asked = any(
                    one.digest == self.actions[name].digest for one in self.questions.values() if one.state == "open"
                )
                self.must(
                    asked, 2, f"the session ends, {name} ({self.actions[name].effect}) is unknown and nobody is asked"
                )
        for call, one in self.calls.items():
            self.must(one.session != body["session"], 4, f"session ends and call {call} is not settled")
        if status == "succeeded":
            self.must(bool(session.checks) and all(session.checks), 11, f"succeeded with the checks {session.checks}")
        if status in ("failed", "limited"):
            self.must_tell.add(body["session"])
        self.counts[f"status {status}"] += 1

    def on_postcondition_checked(self, event: Event, body: Mapping[str, Any]) -> None:
        self.sessions[body["session"]].checks.append(body["passed"])

    def on_context_assembled(self, event: Event, body: Mapping[str, Any]) -> None:
        bound = self.sessions[body["session"]].bounds["context"]
        self.must(body["tokens"] <= body["budget"] <= bound, 4, f"a context of {body['tokens']} tokens of {bound}")

    def on_step_rejected(self, event: Event, body: Mapping[str, Any]) -> None:
        session = self.sessions[body["session"]]
        session.steps = max(session.steps, min(body["step"], session.bounds["steps"]))

    # -- model calls --------------------------------------------------------------------------------------------------

    def on_model_requested(self, event: Event, body: Mapping[str, Any]) -> None:
        session = self.sessions[body["session"]]
        self.must(session.status is None, 4, "a model call outside a session")
        self.must(
            body["reserved_tokens"] == body["prompt_tokens"] + body["completion_cap"], 4, "a reservation is not its sum"
        )
        self.must(body["prompt_tokens"] <= session.bounds["context"], 4, f"a prompt of {body['prompt_tokens']} tokens")
        held = [call for call in self.calls.values() if call.session == body["session"]]
        tokens = session.charged + sum(call.tokens for call in held) + body["reserved_tokens"]
        self.must(tokens <= session.bounds["tokens"], 4, f"{tokens} tokens reserved of {session.bounds['tokens']}")
        usd = session.charged_usd + sum(call.usd for call in held) + body["reserved_usd"]
        self.must(usd <= session.bounds["cost_usd"] + 1e-9, 4, f"{usd} USD reserved of {session.bounds['cost_usd']}")
        day = sum(tokens for at, tokens in self.charges if at > event.at - DAY)
        day += sum(call.tokens for call in self.calls.values()) + body["reserved_tokens"]
        self.must(day <= TOKENS_PER_DAY, 4, f"{day} tokens in a day of {TOKENS_PER_DAY}")
        self.calls[body["call"]] = Call(event.at, body["session"], body["reserved_tokens"], body["reserved_usd"])

    def on_model_replied(self, event: Event, body: Mapping[str, Any]) -> None:
        call = self.calls.pop(body["call"], None)
        self.must(call is not None, 4, f"call {body['call']} is settled twice, or was never reserved")
        assert call is not None
        unknown = body.get("input_tokens") is None or body.get("output_tokens") is None
        if unknown:
            self.must(body["charged_tokens"] == call.tokens, 4, f"a {body['status']} call is not charged in full")
        session = self.sessions[call.session]
        session.charged += body["charged_tokens"]
        session.charged_usd += body["charged_usd"]
        self.charges.append((call.at, body["charged_tokens"]))  # the money was set aside then
        if len(self.charges) > 5_000:
            self.charges.popleft()

    # -- actions ------------------------------------------------------------------------------------------------------

    def on_action_proposed(self, event: Event, body: Mapping[str, Any]) -> None:
        self.must(body["action"] not in self.actions, 2, "an action is proposed twice")
        session = self.sessions[body["session"]]
        self.must(session.status is None, 3, "an action outside a session")
        session.steps = max(session.steps, body["step"])
        self.actions[body["action"]] = Action(
            body["task"], body["session"], body["tool"], body["effect"], body["digest"], body["confidence"],
            self.payload(event.seq)["args"],
        )  # fmt: skip

    def on_action_decided(self, event: Event, body: Mapping[str, Any]) -> None:
        action = self.actions[body["action"]]
        recently = self.in_force[-2:] if event.at - self.changed_at < 2_000_000 else self.in_force[-1:]
        self.must(body["policies"] in recently, 10, f"decided by {body['policies']}, which is not in force")
        expected = self.versions[body["policies"]].expected(action.tool, action.args, action.confidence)
        if action.tool == "write_file" and not str(action.args["path"]).startswith("reports/"):
            expected = "escalate"
        found = body["decision"]
        if found == "auto" and expected == "escalate":
            grant = self.grants.get(body.get("grant") or "")
            fits = grant is not None and grant[:2] == (action.task, action.tool) and dict(grant[2]) == dict(action.args)
            self.must(fits, 3, f"{action.tool} {action.args} was let through by no rule and no grant: {dict(body)}")
        elif found == "deny" and expected == "escalate":
            stands = any(
                one.task == action.task
                and one.digest == action.digest
                and one.state == "denied"
                and one.expires > event.at
                for one in self.questions.values()
            )
            self.must(stands, 3, f"{action.tool} {action.args} was refused by nobody")
        else:
            self.must(found == expected, 3, f"{action.tool} {action.args}: {found} where the policy says {expected}")
        action.decision = found

    def on_action_intended(self, event: Event, body: Mapping[str, Any]) -> None:
        action, approval = self.actions[body["action"]], body.get("approval")
        self.must(action.running == 0, 2, f"a second intent of {body['action']} before the first ended")
        self.must(body["attempt"] == action.attempts + 1, 2, f"attempt {body['attempt']} after {action.attempts}")
        self.must((body["digest"], body["tool"]) == (action.digest, action.tool), 3, "another digest than was decided")
        self.must(self.sessions[body["session"]].status is None, 3, "an intent outside an open session")
        if approval is not None:
            question = self.questions[approval]
            self.must(question.action == body["action"] and question.digest == action.digest, 3, "another's approval")
            self.must(
                question.state == "approved" and event.at < question.valid_until,
                3,
                f"approval {approval} is {question.state}",
            )
            question.state = "used"
            action.approvals.append(approval)
            now = self.versions[self.in_force[-1]].expected(action.tool, action.args, action.confidence)
            self.must(now != "deny", 3, "approved, but the policies in force deny it")
        elif action.attempts == 0:
            self.must(action.decision == "auto", 3, f"an action decided {action.decision} is carried out")
        else:
            undone = action.effect == "probeable" and not self.happened(body["action"])
            self.must(action.status == "unknown", 2, f"{body['action']} is repeated after it {action.status}")
            self.must(action.effect in REPEATABLE or undone, 2, f"{action.effect} repeated unasked")
        action.attempts, action.running, action.in_session = body["attempt"], body["attempt"], body["session"]
        self.running.add(body["action"])

    def on_action_ended(self, event: Event, body: Mapping[str, Any]) -> None:
        action = self.actions[body["action"]]
        if body.get("settles"):
            self.must(
                action.running == 0 and action.status == "unknown", 2, f"{body['action']} settled when {action.status}"
            )
            self.must(body["status"] != "unknown", 2, "settled as unknown")
        else:
            self.must(
                action.running == body["attempt"], 2, f"an outcome of attempt {body['attempt']} without its intent"
            )
        action.running, action.status = 0, body["status"]
        self.running.discard(body["action"])
        (self.unknown.add if action.status == "unknown" else self.unknown.discard)(body["action"])
        self.counts[f"{action.effect} {body['status']}"] += 1

    # -- people -------------------------------------------------------------------------------------------------------

    def on_escalation_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        if not body["action"]:  # the circuit breaker's: may a task that it stopped go on?
            self.must(
                body["task"] in self.paused, 3, f"it is asked whether {body['task']} goes on, which is not stopped"
            )
            self.must(not body["parks"] and body["on_expiry"] == "deny", 3, "silence would let a stopped task go on")
        else:
            self.must(self.actions[body["action"]].digest == body["digest"], 3, "a question about another digest")
        twice = any(
            one.task == body["task"] and one.digest == body["digest"] and one.state == "open"
            for one in self.questions.values()
        )
        self.must(not twice, 3, "the same is asked twice")
        self.must(body["expires"] > event.at, 3, "a question that has expired when it is asked")
        self.questions[body["escalation"]] = Question(
            body["action"], body["task"], body["digest"], body["expires"], event.at, body["on_expiry"], body["parks"]
        )

    def on_escalation_answered(self, event: Event, body: Mapping[str, Any]) -> None:
        question = self.questions[body["escalation"]]
        self.must(question.state == "open", 3, f"a question that is {question.state} is answered")
        self.must(event.at < question.expires, 3, "an answer after expiry counts")
        question.state, question.valid_until = (
            ("approved", question.expires) if body["answer"] == "approve" else ("denied", 0)
        )
        if question.state == "approved" and not question.action:
            self.must_go_on.add(question.task)

    def on_escalation_expired(self, event: Event, body: Mapping[str, Any]) -> None:
        question = self.questions[body["escalation"]]
        if question.state == "approved":
            self.must(
                event.at >= question.valid_until and body["default"] == "deny", 3, "an approval expires too early"
            )
            question.state = "expired"
            return
        self.must(question.state == "open" and event.at >= question.expires, 3, "a question expires too early")
        self.must(body["default"] == question.on_expiry, 3, "expired with another default")
        question.state = "approved" if body["default"] == "approve" else "expired"
        question.valid_until = event.at + question.expires - question.opened

    def on_grant_given(self, event: Event, body: Mapping[str, Any]) -> None:
        self.grants[body["grant"]] = (body["task"], body["tool"], self.payload(event.seq)["pattern"])

    def on_grant_revoked(self, event: Event, body: Mapping[str, Any]) -> None:
        self.must(self.grants.pop(body["grant"], None) is not None, 3, "a grant is revoked twice")

    # -- at rest ------------------------------------------------------------------------------------------------------

    def recovered(self) -> None:
        """What recovery leaves: nothing half-done."""
        self.must(not self.open_sessions, 2, f"recovery leaves open sessions: {self.open_sessions}")
        self.must(not self.calls, 4, f"recovery leaves open calls: {self.calls}")
        self.must(not self.running, 2, f"recovery leaves intents without an end: {sorted(self.running)}")
        waiting = {slot.resumes for slot in self.slots.values() if slot.outcome is None}
        for name in self.unknown:
            action = self.actions[name]
            asked = any(one.digest == action.digest and one.task == action.task for one in self.questions.values())
            taken_up = action.effect != "once" and action.in_session in waiting
            self.must(asked or taken_up, 2, f"{name} ({action.effect}) is unknown, and nobody is asked")
        for name, question in self.questions.items():
            self.must(question.state != "open" or name in self.told, 12, f"nobody was told of {name}")

    def stopped(self) -> None:
        """What a clean stop leaves."""
        self.must(not self.open_sessions and not self.calls, 2, "a clean stop leaves something open")
        self.must(not self.must_tell, 12, f"nobody was told of the failed sessions {sorted(self.must_tell)}")

    def crashed(self) -> None:
        """A message that was about to be sent is not sent again; the failure itself is on record."""
        self.counts["messages lost in a crash"] += len(self.must_tell)
        self.must_tell.clear()

    def covered(self, task: str) -> Iterator[tuple[int, int, int]]:
        """(first, last, count) of each scheduled slot of the task, in order."""
        rows = [one for one in self.slots.values() if one.task == task and one.kind == "scheduled"]
        for slot in sorted(rows, key=lambda one: one.due):
            yield slot.due, slot.last_due, slot.count
