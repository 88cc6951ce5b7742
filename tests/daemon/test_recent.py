"""What decisions hold ready of the ledger is, at every moment, what a look into the ledger finds."""

from __future__ import annotations

import random
from pathlib import Path

from perdure.daemon.recent import DAY, HOUR, Recent
from perdure.state import events as e
from perdure.state import projections
from perdure.state.ledger import Ledger

CHANCE = random.Random(7)
TOOLS = {"read_file": "read", "write_file": "idempotent", "block_ip": "once"}


class Life:
    """A ledger in which sessions come, act, go and are resumed, while the clock goes on and sometimes jumps back."""

    def __init__(self, path: Path) -> None:
        self.at = 1_790_000_000_000_000
        self.ledger = Ledger.create(path, now=lambda: self.at, workspace="w")
        self.open: dict[str, str] = {}  # task -> session
        self.parked: dict[str, str] = {}
        self.running: list[e.ActionIntended] = []
        self.number = 0

    def new(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"

    def go_on(self) -> None:
        self.at += CHANCE.choice([1, 10_000_000, HOUR // 3, HOUR, DAY // 3, -HOUR])
        CHANCE.choice([self._session, self._act, self._act, self._act, self._end, self._end, self._look, self._model])()

    def _session(self) -> None:
        task = CHANCE.choice("ab")
        session = self.open.pop(task, None)
        if session is not None and not any(intent.session == session for intent in self.running):
            end = {"status": "parked", "reason": "r", "steps": 1, "tokens": 0, "cost_usd": 0.0, "duration_us": 1}
            self.ledger.commit(e.SessionClosed(session=session, task=task, slot=f"slot-{session}", **end))
            self.parked[task] = session
        elif session is None:
            new = self.new("S")
            self.ledger.commit(
                e.SlotOpened(slot=f"slot-{new}", task=task, kind="manual", due=self.at),
                e.SessionOpened(
                    session=new, task=task, slot=f"slot-{new}", planner="playbook", bounds={}, task_digest="d",
                    policies="p", fence=1, resumes=self.parked.get(task) if CHANCE.random() < 0.5 else None,
                ),
            )  # fmt: skip
            self.open[task] = new
        else:
            self.open[task] = session

    def _act(self) -> None:
        if not self.open:
            return
        task, session = CHANCE.choice(sorted(self.open.items()))
        tool = CHANCE.choice(sorted(TOOLS))
        whose = {"action": self.new("A"), "session": session, "task": task}
        what = {"tool": tool, "effect": TOOLS[tool], "digest": "d"}
        intent = e.ActionIntended(**whose, **what, attempt=1)
        decided = e.ActionDecided(**whose, decision="auto", rules=[], reason="r", policies="p")
        self.ledger.commit(e.ActionProposed(**whose, **what, step=1, confidence=1.0), decided, intent)
        self.running.append(intent)

    def _end(self) -> None:
        if not self.running:
            return
        intent = self.running.pop(CHANCE.randrange(len(self.running)))
        status = CHANCE.choice(["succeeded", "failed", "unknown"])
        whose = {"action": intent.action, "session": intent.session, "task": intent.task}
        self.ledger.commit(
            e.ActionEnded(**whose, tool=intent.tool, attempt=intent.attempt, status=status, duration_us=1)
        )
        if status == "unknown" and intent.effect != "once":
            again = e.ActionIntended(
                **whose, tool=intent.tool, effect=intent.effect, digest="d", attempt=intent.attempt + 1
            )
            self.ledger.commit(again)
            self.running.append(again)

    def _look(self) -> None:
        """A verification, of an action that ended or that runs, in a session that is open or not."""
        row = CHANCE.choice(projections.actions(self.ledger.reader, limit=8) or [None])
        if row is not None and row.state in ("ended", "intended"):
            self.ledger.commit(
                e.ActionVerified(
                    action=row.action, session=row.session, task=row.task, verifier="v", passed=CHANCE.random() < 0.6
                )
            )

    def _model(self) -> None:
        for task, session in self.open.items():
            asked = {"session": session, "task": task, "call": self.new("C"), "model": "m", "purpose": "propose"}
            self.ledger.commit(
                e.ModelRequested(**asked, prompt_tokens=5, completion_cap=4, reserved_tokens=9, reserved_usd=0.5)
            )


def started_since(reader, tool, since):
    return reader.rows("SELECT COUNT(*) FROM actions WHERE tool = ? AND intended_at >= ?", tool, since)[0][0]


def share_succeeded(reader, task, tool):
    sql = "SELECT COUNT(*), SUM(status IS 'succeeded' AND verified IS NOT 0) FROM actions"
    sql += " WHERE task = ? AND tool = ? AND (status IS NOT NULL OR attempt > 1)"
    tried, succeeded = reader.rows(sql, task, tool)[0]
    return succeeded / tried if tried else -1.0


def test_it_says_what_the_ledger_says(tmp_path):
    life = Life(tmp_path / "ledger.db")
    reader = life.ledger.reader
    recent = Recent(life.ledger)
    for turn in range(600):
        life.go_on()
        if turn % 3 == 0:
            fresh = Recent(life.ledger)
            for tool in TOOLS:
                hour, day = (started_since(reader, tool, life.at - window) for window in (HOUR, DAY))
                assert recent.calls(tool, life.at) == fresh.calls(tool, life.at) == (hour, day)
                for task in "ab":
                    rate = share_succeeded(reader, task, tool)
                    assert recent.success_rate(task, tool) == fresh.success_rate(task, tool) == rate
            for session in life.open.values():
                assert recent.heard(session) == fresh.heard(session)
                expected = (
                    projections.spend(reader, 0, session=session),
                    projections.spend(reader, life.at - HOUR),
                    projections.spend(reader, life.at - DAY),
                )
                assert recent.spent(session, life.at) == expected
    life.ledger.close()


def test_what_has_long_been_forgotten_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr("perdure.daemon.recent.FORGOTTEN_MAX", 3)
    life = Life(tmp_path / "ledger.db")
    recent = Recent(life.ledger)
    life._session()
    for _ in range(20):
        life.at += HOUR
        life._act()
        for tool in TOOLS:
            recent.calls(tool, life.at)
    life.at += 2 * DAY
    assert all(recent.calls(tool, life.at) == (0, 0) for tool in TOOLS)
    assert sum(len(started) for started in recent._started.values()) <= 3 * len(TOOLS)
    life.ledger.close()
