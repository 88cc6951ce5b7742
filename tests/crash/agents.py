"""The program under test: the journal's protocol around real effects, as the daemon follows it; and the same done wrong, which
the harness must catch or it proves nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from perdure.state import chain
from perdure.state import events as e
from perdure.state import projections as p
from perdure.state.anchor import AnchorWriter
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner

PLAN = ("read", "idempotent", "probeable", "once", "approved")
TASK = "task"
HOUR = 3_600_000_000


class Observer:
    """The world outside: a log that the tools' target keeps, and what was acknowledged to a person. Not Perdure's."""

    def __init__(self, path: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._path = path
        self._note = note

    def effect(self, action: str, attempt: int) -> None:
        self._say(f"effect {action} {attempt}")

    def acknowledge(self, what: str) -> None:
        self._say(f"acknowledged {what}")

    def _say(self, line: str) -> None:
        self._note(line)
        os.write(self._file, line.encode() + b"\n")

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()]

    def happened(self, action: str) -> bool:
        """The probe: the target knows."""
        return any(line[:2] == ["effect", action] for line in self.lines())

    def close(self) -> None:
        os.close(self._file)


class Agent:
    """The right way. Subclasses get one thing wrong."""

    caught_by = "nobody"

    @classmethod
    @contextlib.contextmanager
    def faulty_ledger(cls) -> Iterator[None]:
        """For agents whose ledger itself is wrong: it is within this context."""
        yield

    def __init__(
        self, state_dir: Path, observer: Observer, phase: Callable[[str], None] = lambda _: None, rounds: int = 1
    ) -> None:
        self.state_dir = state_dir
        self.observer = observer
        self.phase = phase
        self.rounds = rounds

    def run(self) -> None:
        """Start, recover, do what is left of the plan, stop."""
        self.phase("start")
        with Owner.acquire(self.state_dir) as owner:
            self.clock = 1_790_000_000_000_000 + owner.fence * HOUR // 60
            path = self.state_dir / "ledger.db"
            if path.exists():
                self.ledger = Ledger.open(path, now=self.now, fence=owner.fence)
            else:
                self.ledger = Ledger.create(path, now=self.now, workspace="w", fence=owner.fence)
            self.prepare(self.ledger)
            self.reader = self.ledger.reader
            self.recover()
            self.work(owner.fence)
            self.phase("stop")
            self.ledger.close()

    def prepare(self, ledger: Ledger) -> None:
        """For agents that spoil the settings."""

    def now(self) -> int:
        self.clock += 1
        return self.clock

    # -- recovery -----------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        for row in p.open_intents(self.reader):
            self.phase(f"recover {row.effect}")
            self.ledger.commit(self.ended(row, row.attempt, "unknown"))
        for row in p.unknown_actions(self.reader):
            self.phase(f"settle {row.effect}")
            self.settle(row)
        for session in p.open_sessions(self.reader):
            self.phase("close session")
            self.ledger.commit(
                e.SessionClosed(
                    session=session.session,
                    task=TASK,
                    slot=session.slot,
                    status="interrupted",
                    reason="crash",
                    steps=0,
                    tokens=0,
                    cost_usd=0.0,
                    duration_us=0,
                ),
                e.SlotClosed(
                    slot=session.slot,
                    task=TASK,
                    kind="manual",
                    due=int(session.slot.split("/")[2]),
                    outcome="ran",
                    session=session.session,
                ),
            )

    def settle(self, row: p.ActionRow) -> None:
        if row.effect == "once":
            self.ask_whether(row)
        elif row.effect == "probeable" and self.observer.happened(row.action):
            self.ledger.commit(self.ended(row, row.attempt, "succeeded", settles=True))
        else:
            self.attempt(row.action, row.effect, row.attempt + 1, row.attempt_session)

    def ask_whether(self, row: p.ActionRow) -> None:
        if p.open_escalation_for(self.reader, TASK, row.digest) is None:
            self.ledger.commit(
                e.ActionDecided(
                    action=row.action,
                    session=row.session,
                    task=TASK,
                    decision="escalate",
                    rules=[],
                    reason="unknown",
                    policies="p",
                ),
                self.question(f"{row.action}-unknown-{row.attempt}", row.action, row.session),
            )

    # -- work ---------------------------------------------------------------------------------------------------------

    def work(self, fence: int) -> None:
        steps = [f"{round_}.{effect}" for round_ in range(self.rounds) for effect in PLAN]
        if all((row := p.action(self.reader, step)) is not None and row.state == "ended" for step in steps):
            return
        self.phase("open session")
        session, slot = f"S{fence}", f"{TASK}/manual/{fence}"
        earlier = p.sessions(self.reader, limit=1)
        self.ledger.commit(
            e.SlotOpened(slot=slot, task=TASK, kind="manual", due=fence),
            e.SessionOpened(
                session=session,
                task=TASK,
                slot=slot,
                planner="playbook",
                bounds={"steps": 10},
                task_digest="t",
                policies="p",
                fence=fence,
                resumes=earlier[0].session if earlier else None,
                payload="x" * 300,
            ),
        )
        for number, step in enumerate(steps):
            self.step(number, step, session)
        self.phase("close session")
        self.ledger.commit(
            e.SessionClosed(
                session=session,
                task=TASK,
                slot=slot,
                status="succeeded",
                reason="done",
                steps=len(steps),
                tokens=0,
                cost_usd=0.0,
                duration_us=1,
            ),
            e.SlotClosed(slot=slot, task=TASK, kind="manual", due=fence, outcome="ran", session=session),
        )

    def step(self, number: int, step: str, session: str) -> None:
        effect = step.split(".")[1]
        row = p.action(self.reader, step)
        proposal = (self.proposed(number, step, session, "once" if effect == "approved" else effect),)
        if effect != "approved":
            if row is None:
                self.attempt(step, effect, 1, session, prelude=(*proposal, self.decided(step, session, "auto")))
            return
        if row is None:
            self.phase("ask")
            self.ledger.commit(
                *proposal, self.decided(step, session, "escalate"), self.question(f"E{step}", step, session)
            )
            row = p.action(self.reader, step)
        question = p.escalation(self.reader, f"E{step}")
        if question.state == "open":
            self.phase("answer")
            self.ledger.commit(
                e.EscalationAnswered(escalation=f"E{step}", task=TASK, answer="approve", uid=0, via="test")
            )
            self.observer.acknowledge(f"approval {step}")
        if row.state == "escalated":
            self.attempt(step, "once", 1, session, approval=f"E{step}")

    def attempt(
        self,
        action: str,
        effect: str,
        attempt: int,
        session: str,
        prelude: tuple[e.Draft, ...] = (),
        approval: str | None = None,
    ) -> None:
        self.phase(f"intent {effect}")
        self.ledger.commit(*prelude, self.intended(action, effect, attempt, session, approval))
        self.phase(f"outcome {effect}")
        self.observer.effect(action, attempt)
        self.end(action, attempt)

    def end(self, action: str, attempt: int) -> None:
        self.ledger.commit(self.ended(p.action(self.reader, action), attempt, "succeeded"))
        self.observer.acknowledge(f"outcome {action}")

    # -- drafts -------------------------------------------------------------------------------------------------------

    def proposed(self, number: int, action: str, session: str, effect: str) -> e.ActionProposed:
        return e.ActionProposed(
            action=action,
            session=session,
            task=TASK,
            step=number,
            tool="tool",
            effect=effect,
            digest=f"sha256:{action}",
            confidence=1.0,
            payload={"args": {"n": number, "text": "lorem ipsum " * 30}},
        )

    def decided(self, action: str, session: str, decision: str) -> e.ActionDecided:
        return e.ActionDecided(
            action=action,
            session=session,
            task=TASK,
            decision=decision,
            rules=[{"name": "r", "file": "f", "line": 1, "decide": decision}],
            reason="r",
            policies="p",
        )

    def intended(self, action: str, effect: str, attempt: int, session: str, approval: str | None) -> e.ActionIntended:
        return e.ActionIntended(
            action=action,
            session=session,
            task=TASK,
            tool="tool",
            effect=effect,
            digest=f"sha256:{action}",
            attempt=attempt,
            approval=approval,
        )

    def ended(self, row: p.ActionRow, attempt: int, status: str, settles: bool | None = None) -> e.ActionEnded:
        return e.ActionEnded(
            action=row.action,
            session=row.session,
            task=TASK,
            tool="tool",
            attempt=attempt,
            status=status,
            duration_us=1,
            settles=settles,
            payload={"result": "fine " * 40},
        )

    def question(self, escalation: str, action: str, session: str) -> e.EscalationOpened:
        return e.EscalationOpened(
            escalation=escalation,
            action=action,
            digest=f"sha256:{action}",
            session=session,
            task=TASK,
            tool="tool",
            expires=self.clock + 100 * 24 * HOUR,
            on_expiry="deny",
            parks=True,
        )


class ResultOnly(Agent):
    """Records what it did, never what it is about to do."""

    caught_by = "kill"

    def attempt(self, action, effect, attempt, session, prelude=(), approval=None):
        self.phase(f"outcome {effect}")
        self.observer.effect(action, attempt)
        self.ledger.commit(*prelude, self.intended(action, effect, attempt, session, approval))
        self.end(action, attempt)


class EffectBeforeIntent(Agent):
    """Acts while the intent is still on its way to the disk."""

    caught_by = "kill"

    def attempt(self, action, effect, attempt, session, prelude=(), approval=None):
        self.ledger.commit(*prelude) if prelude else None
        self.phase(f"intent {effect}")
        self.observer.effect(action, attempt)
        self.ledger.commit(self.intended(action, effect, attempt, session, approval))
        self.end(action, attempt)


class OutcomeBeforeEffect(Agent):
    """Writes that it is done, then does it."""

    caught_by = "kill"

    def attempt(self, action, effect, attempt, session, prelude=(), approval=None):
        self.ledger.commit(*prelude, self.intended(action, effect, attempt, session, approval))
        self.end(action, attempt)
        self.phase(f"outcome {effect}")
        self.ledger.commit(e.AlarmRaised(code="about-to-act"))
        self.observer.effect(action, attempt)


class RunsUnknownAgain(Agent):
    """After a crash, does again whatever has no outcome."""

    caught_by = "kill"

    def settle(self, row):
        self.observer.effect(row.action, row.attempt)
        self.ledger.commit(self.ended(row, row.attempt, "succeeded", settles=True))


class CallsUnknownFailed(Agent):
    """After a crash, takes for granted that nothing happened."""

    caught_by = "kill"

    def settle(self, row):
        self.ledger.commit(self.ended(row, row.attempt, "failed", settles=True))


class Normal(Agent):
    """synchronous=NORMAL: survives every kill, not a power cut."""

    caught_by = "power"

    def prepare(self, ledger):
        ledger.reader.connection.execute("PRAGMA synchronous = NORMAL")


class Off(Agent):
    """synchronous=OFF."""

    caught_by = "power"

    def prepare(self, ledger):
        ledger.reader.connection.execute("PRAGMA synchronous = OFF")


class DeleteFull(Agent):
    """The default of Python and others: a rollback journal, whose deletion is not synced."""

    caught_by = "power"

    def prepare(self, ledger):
        ledger.reader.connection.execute("PRAGMA journal_mode = DELETE")


class CheckpointsOften(Agent):
    """The right way, where nearly every commit is followed by a checkpoint."""

    def prepare(self, ledger):
        ledger.reader.connection.execute("PRAGMA wal_autocheckpoint = 8")


class ChainWithoutSequenceAndTime(Agent):
    """Its chain covers what happened, not when nor as which."""

    caught_by = "tamper"

    @classmethod
    def faulty_ledger(cls):
        right = chain.link
        return _instead(chain, "link", lambda seq, at, *rest: right(0, 0, *rest))


class HeadNotAnchored(Agent):
    """Notes its first head outside the file, and no other."""

    caught_by = "tamper"

    @classmethod
    def faulty_ledger(cls):
        right = AnchorWriter.append
        return _instead(
            AnchorWriter, "append", lambda self, anchored: right(self, anchored) if anchored.seq == 1 else None
        )


@contextlib.contextmanager
def _instead(holder: object, name: str, wrong: Callable[..., object]) -> Iterator[None]:
    right = getattr(holder, name)
    setattr(holder, name, wrong)
    try:
        yield
    finally:
        setattr(holder, name, right)


CONTROLS = (
    ResultOnly,
    EffectBeforeIntent,
    OutcomeBeforeEffect,
    RunsUnknownAgain,
    CallsUnknownFailed,
    Normal,
    Off,
    DeleteFull,
    ChainWithoutSequenceAndTime,
    HeadNotAnchored,
)
