"""A ledger in a temporary directory, with a clock and randomness that the test owns, and words to tell a story in events."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest

from perdure.state import events as e
from perdure.state.ledger import Ledger
from perdure.state.verification import verify

MINUTE = 60_000_000
START = 1_790_000_000_000_000


class Story:
    """One workspace's state directory. `at` is the clock; every reading moves it on by a microsecond."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "ledger.db"
        self.at = START
        self._salts = itertools.count()
        self._ids = itertools.count(1)
        self.ledger: Ledger | None = None

    def now(self) -> int:
        self.at += 1
        return self.at

    def entropy(self, size: int) -> bytes:
        return hashlib.sha256(b"%d" % next(self._salts)).digest()[:size]

    def create(self, **options) -> Ledger:
        self.ledger = Ledger.create(self.path, now=self.now, workspace="story", entropy=self.entropy, **options)
        return self.ledger

    def open(self, fence: int = 1, **options) -> Ledger:
        self.ledger = Ledger.open(self.path, now=self.now, fence=fence, entropy=self.entropy, **options)
        return self.ledger

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
            self.ledger = None

    def verify(self, **options):
        return verify(self.directory, **options)

    def kinds(self, **options) -> set[str]:
        return {finding.kind for finding in self.verify(**options).findings}

    # -- drafts ---------------------------------------------------------------------------------------------------

    def new(self, prefix: str) -> str:
        return f"{prefix}{next(self._ids)}"

    def session(self, task: str = "triage", **fields) -> str:
        """Open a session of `task` in a new manual slot; returns its id."""
        session, due = self.new("S"), self.at
        slot = f"{task}/manual/{session}"
        self.ledger.commit(
            e.SlotOpened(slot=slot, task=task, kind="manual", due=due),
            self.opening(session, task, slot, **fields),
        )
        return session

    def opening(self, session: str, task: str, slot: str, **fields) -> e.SessionOpened:
        fields = {"fence": self.ledger.fence, "planner": "playbook", "payload": "Read the logs.", **fields}
        return e.SessionOpened(
            session=session,
            task=task,
            slot=slot,
            bounds={"steps": 10, "cost_usd": 0.5},
            task_digest="sha256:t",
            policies="sha256:p",
            **fields,
        )

    def closing(self, session: str, task: str = "triage", **fields) -> e.SessionClosed:
        fields = {
            "status": "succeeded",
            "reason": "done",
            "steps": 1,
            "tokens": 0,
            "cost_usd": 0.0,
            "duration_us": 5,
            **fields,
        }
        return e.SessionClosed(session=session, task=task, slot=f"{task}/manual/{session}", **fields)

    def proposal(self, action: str, session: str, task: str = "triage", **fields) -> e.ActionProposed:
        fields = {
            "step": 1,
            "tool": "write_file",
            "effect": "idempotent",
            "digest": "sha256:d",
            "confidence": 1.0,
            "payload": {"args": {"path": "a", "text": "b"}},
            **fields,
        }
        return e.ActionProposed(action=action, session=session, task=task, **fields)

    def decision(self, action: str, session: str, decided: str = "auto", task: str = "triage") -> e.ActionDecided:
        rules = [{"name": "reports", "file": "policies/a.yaml", "line": 3, "decide": decided}]
        return e.ActionDecided(
            action=action,
            session=session,
            task=task,
            decision=decided,
            rules=rules,
            reason="rule reports",
            policies="sha256:p",
        )

    def intent(self, action: str, session: str, task: str = "triage", **fields) -> e.ActionIntended:
        fields = {"tool": "write_file", "effect": "idempotent", "digest": "sha256:d", "attempt": 1, **fields}
        return e.ActionIntended(action=action, session=session, task=task, **fields)

    def outcome(
        self, action: str, session: str, status: str = "succeeded", task: str = "triage", **fields
    ) -> e.ActionEnded:
        fields = {"tool": "write_file", "attempt": 1, "duration_us": 7, "payload": {"result": {"bytes": 3}}, **fields}
        return e.ActionEnded(action=action, session=session, task=task, status=status, **fields)

    def question(
        self, escalation: str, action: str, session: str, task: str = "triage", **fields
    ) -> e.EscalationOpened:
        fields = {
            "digest": "sha256:d",
            "tool": "write_file",
            "expires": self.at + 60 * MINUTE,
            "on_expiry": "deny",
            "parks": True,
            "payload": {"question": "Write a?"},
            **fields,
        }
        return e.EscalationOpened(escalation=escalation, action=action, session=session, task=task, **fields)

    def answer(self, escalation: str, answer: str = "approve", task: str = "triage") -> e.EscalationAnswered:
        return e.EscalationAnswered(
            escalation=escalation, task=task, answer=answer, uid=1000, via="cli", payload={"note": "fine"}
        )

    # -- longer ones ----------------------------------------------------------------------------------------------

    def act(self, session: str, **fields) -> str:
        """One action from proposal to outcome in the two commits of the design; returns its id."""
        action = self.new("A")
        self.ledger.commit(
            self.proposal(action, session, **fields), self.decision(action, session), self.intent(action, session)
        )
        self.ledger.commit(self.outcome(action, session))
        return action

    def ask(self, session: str, **fields) -> tuple[str, str]:
        """An escalated action with its open question; returns (action, escalation)."""
        action, escalation = self.new("A"), self.new("E")
        self.ledger.commit(
            self.proposal(action, session, **fields),
            self.decision(action, session, "escalate"),
            self.question(escalation, action, session, digest=fields.get("digest", "sha256:d")),
        )
        return action, escalation

    def live(self, actions: int = 5) -> Ledger:
        """A ledger with a bit of everything, still open."""
        ledger = self.create()
        ledger.commit(
            e.DaemonStarted(pid=1, fence=1, version="0", host="h"),
            e.TaskLoaded(task="triage", digest="sha256:t", schedule='{"every":"15m"}', payload="# task"),
        )
        session = self.session()
        for _ in range(actions):
            self.act(session)
        ledger.commit(
            e.ModelRequested(
                session=session,
                task="triage",
                call="C1",
                model="m",
                purpose="propose",
                prompt_tokens=10,
                completion_cap=5,
                reserved_tokens=15,
                reserved_usd=0.01,
                payload={"messages": ["hi"]},
            )
        )
        ledger.commit(
            e.ModelReplied(
                session=session,
                task="triage",
                call="C1",
                status="replied",
                charged_tokens=12,
                charged_usd=0.005,
                payload={"text": "ho"},
            )
        )
        self.ask(session, digest="sha256:other")
        ledger.commit(
            e.GrantGiven(
                grant="G1",
                task="triage",
                tool="write_file",
                rule="reports",
                uid=1000,
                payload={"pattern": {"path": "a"}},
            ),
            self.closing(session, status="parked"),
            e.SlotClosed(
                slot=f"triage/manual/{session}",
                task="triage",
                kind="manual",
                due=ledger.reader.rows("SELECT due FROM slots")[0][0],
                outcome="ran",
                session=session,
            ),
        )
        return ledger


@pytest.fixture
def story(tmp_path):
    told = Story(tmp_path / "state")
    told.directory.mkdir()
    yield told
    told.close()


@pytest.fixture(scope="session")
def new_story(tmp_path_factory):
    """Stories for properties: each call starts one in a directory of its own."""

    def start() -> Story:
        return Story(tmp_path_factory.mktemp("state"))

    return start
