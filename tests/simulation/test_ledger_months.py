"""165 days of a workspace's ledger under a simulated clock: schedules, crashes, downtime, clocks that jump, people who answer late
or never. Every promise is checked as the events come and in full at the end; the same seed gives the same ledger."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.state import events as e
from perdure.state import projections as p
from perdure.state.accounting import verify_slots
from perdure.state.ledger import Ledger, LedgerRefused
from perdure.state.retention import expire_payloads
from perdure.state.verification import verify

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = 1_767_225_600_000_000  # 1 January 2026
TASK = "triage"
EFFECTS = ("read", "idempotent", "probeable", "once")


class Crash(Exception):
    """The process is gone; what it had committed is on the disk."""


def firings(_task: str, _schedule: str, after: int, until: int) -> Iterator[int]:
    """Every four hours."""
    return iter(range((after // (4 * HOUR) + 1) * 4 * HOUR, until + 1, 4 * HOUR))


class World:
    """A workspace's life, decided by the seed alone. The effects are the world's, not the ledger's."""

    def __init__(self, root: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.root = root
        self.life = self.fence = self.sessions = self.crashes = self.count = 0
        self.at = START
        self.effects: dict[tuple[str, int], int] = {}
        self.directory = root / "0"
        self.directory.mkdir(parents=True)
        self.ledger = Ledger.create(
            self.directory / "ledger.db", now=self.now, workspace="w", fence=1, entropy=self.chance.randbytes
        )
        self.fence = 1
        self.watch()
        self.ledger.commit(e.TaskLoaded(task=TASK, digest="t", schedule='{"every":"4h"}'))
        self.loaded = self.at

    def now(self) -> int:
        self.at += self.chance.randint(1, 5_000)
        return self.at

    def watch(self) -> None:
        self.ledger.reader.connection.execute("PRAGMA synchronous = OFF")  # the disk is not what is tested here
        self.ledger.subscribe(self.check)

    def check(self, events: tuple[e.Event, ...]) -> None:
        """After every commit: numbers without a gap, and never an effect without its intent."""
        self.count += len(events)
        for event in events:
            if event.type == "action.ended" and event.body["status"] == "succeeded":
                assert any(action == event.body["action"] for action, _ in self.effects)
        assert len(p.open_sessions(self.ledger.reader)) <= 1
        assert len(p.open_intents(self.ledger.reader)) <= 1

    def restart(self) -> None:
        """The disk as the crash left it, in a new place, as a new process finds it."""
        self.life += 1
        self.crashes += 1
        later = self.root / str(self.life)
        shutil.copytree(self.directory, later)
        self.ledger.close()
        shutil.rmtree(self.directory)
        self.directory = later
        self.at += self.chance.choice([HOUR // 60, HOUR, 9 * HOUR, 3 * DAY])
        self.fence += 1
        self.ledger = Ledger.open(later / "ledger.db", now=self.now, fence=self.fence, entropy=self.chance.randbytes)
        self.watch()
        self.recover()

    def maybe_crash(self) -> None:
        if self.chance.random() < 0.006:
            raise Crash

    # -- the protocol -------------------------------------------------------------------------------------------------

    def act(
        self, action: str, effect: str, attempt: int, session: str, *before: e.Draft, approval: str | None = None
    ) -> None:
        self.ledger.commit(
            *before,
            e.ActionIntended(
                action=action,
                session=session,
                task=TASK,
                tool="t",
                effect=effect,
                digest=f"d{action}",
                attempt=attempt,
                approval=approval,
            ),
        )
        self.maybe_crash()
        self.effects[action, attempt] = self.effects.get((action, attempt), 0) + 1
        self.maybe_crash()
        self.end(action, session, attempt, self.chance.choice(["succeeded"] * 9 + ["unknown"]))

    def end(self, action: str, session: str, attempt: int, status: str, settles: bool | None = None) -> None:
        self.ledger.commit(
            e.ActionEnded(
                action=action,
                session=session,
                task=TASK,
                tool="t",
                attempt=attempt,
                status=status,
                duration_us=1,
                settles=settles,
                payload={"result": self.chance.randint(0, 9)},
            )
        )

    def decided(self, action: str, session: str, decision: str) -> e.ActionDecided:
        return e.ActionDecided(
            action=action, session=session, task=TASK, decision=decision, rules=[], reason="r", policies="p"
        )

    def ask(self, action: str, session: str) -> None:
        self.ledger.commit(
            self.decided(action, session, "escalate"),
            e.EscalationOpened(
                escalation=f"E{action}",
                action=action,
                digest=f"d{action}",
                session=session,
                task=TASK,
                tool="t",
                expires=self.at + 2 * DAY,
                on_expiry="deny",
                parks=False,
            ),
        )

    def session(self, slot: str, resumes: str | None = None) -> str:
        self.sessions += 1
        session = f"S{self.sessions:06}"
        self.ledger.commit(
            e.SessionOpened(
                session=session,
                task=TASK,
                slot=slot,
                planner="playbook",
                bounds={"steps": 9},
                task_digest="t",
                policies="p",
                fence=self.fence,
                resumes=resumes,
                payload="instruction",
            )
        )
        return session

    def close_session(self, session: str, slot: p.SlotRow, status: str = "succeeded", outcome: str = "ran") -> None:
        self.ledger.commit(
            e.SessionClosed(
                session=session,
                task=TASK,
                slot=slot.slot,
                status=status,
                reason="r",
                steps=1,
                tokens=0,
                cost_usd=0.0,
                duration_us=1,
            ),
            e.SlotClosed(slot=slot.slot, task=TASK, kind=slot.kind, due=slot.due, outcome=outcome, session=session),
        )

    def run(self, slot: p.SlotRow) -> None:
        session = self.session(slot.slot)
        for step in range(self.chance.randint(1, 4)):
            action, effect = f"A{self.sessions:06}-{step}", self.chance.choice(EFFECTS)
            proposal = e.ActionProposed(
                action=action,
                session=session,
                task=TASK,
                step=step,
                tool="t",
                effect=effect,
                digest=f"d{action}",
                confidence=1.0,
                payload={"args": {}},
            )
            self.maybe_crash()
            if self.chance.random() < 0.15:
                self.ledger.commit(proposal)
                self.ask(action, session)
                continue
            if self.chance.random() < 0.05:
                self.ledger.commit(proposal, self.decided(action, session, "deny"))
                continue
            self.act(action, effect, 1, session, proposal, self.decided(action, session, "auto"))
        if self.chance.random() < 0.2:
            call = f"C{session}"
            self.ledger.commit(
                e.ModelRequested(
                    session=session,
                    task=TASK,
                    call=call,
                    model="m",
                    purpose="propose",
                    prompt_tokens=1,
                    completion_cap=1,
                    reserved_tokens=2,
                    reserved_usd=0.0,
                    payload="request",
                )
            )
            self.ledger.commit(
                e.ModelReplied(
                    session=session,
                    task=TASK,
                    call=call,
                    status="replied",
                    charged_tokens=1,
                    charged_usd=0.0,
                    payload="reply",
                )
            )
        self.close_session(session, slot)

    def recover(self) -> None:
        for row in p.open_intents(self.ledger.reader):
            self.end(row.action, row.session, row.attempt, "unknown")
        for session in p.open_sessions(self.ledger.reader):
            self.settle(session.session)
            self.close_session(session.session, p.slot(self.ledger.reader, session.slot), "interrupted")

    def settle(self, session: str) -> None:
        """Every unknown outcome, by its class."""
        for row in p.unknown_actions(self.ledger.reader):
            happened = any(action == row.action for action, _ in self.effects)
            if row.effect == "once" or row.approval is not None:
                if p.escalation(self.ledger.reader, f"E{row.action}") is None:
                    self.ask(row.action, row.session)
            elif row.effect == "probeable" and happened:
                self.end(row.action, row.session, row.attempt, "succeeded", settles=True)
            else:
                self.act(row.action, row.effect, row.attempt + 1, session)

    # -- time and people ----------------------------------------------------------------------------------------------

    def fire(self) -> None:
        """Open a slot for what is due, one range for what was missed."""
        last = p.last_slot(self.ledger.reader, TASK, "scheduled")
        due = list(firings(TASK, "", last.last_due if last else self.loaded, self.at))
        if len(due) > 1:
            missed = due[:-1]
            last_due = missed[-1] if len(missed) > 1 else None
            self.ledger.commit(
                e.SlotClosed(
                    slot=f"{TASK}/scheduled/{missed[0]}",
                    task=TASK,
                    kind="scheduled",
                    due=missed[0],
                    last_due=last_due,
                    count=len(missed),
                    outcome="missed",
                )
            )
        for moment in due[-1:]:
            self.ledger.commit(e.SlotOpened(slot=f"{TASK}/scheduled/{moment}", task=TASK, kind="scheduled", due=moment))
        for slot in p.slots(self.ledger.reader, open_only=True):
            self.run(slot)

    def people(self) -> None:
        for question in p.escalations(self.ledger.reader):
            if self.at >= question.expires:
                self.ledger.commit(e.EscalationExpired(escalation=question.escalation, task=TASK, default="deny"))
            elif self.chance.random() < 0.2:
                answer = self.chance.choice(["approve", "deny"])
                self.ledger.commit(
                    e.EscalationAnswered(escalation=question.escalation, task=TASK, answer=answer, uid=1, via="cli")
                )
                row = p.action(self.ledger.reader, question.action)
                if row.status == "unknown":  # the question was what became of it
                    happened = any(action == row.action for action, _ in self.effects)
                    self.end(row.action, row.session, row.attempt, "succeeded" if happened else "failed", settles=True)
                elif answer == "approve":
                    self.resume(question, row)

    def resume(self, question: p.EscalationRow, row: p.ActionRow) -> None:
        slot = f"{TASK}/resume/{question.escalation}"
        self.ledger.commit(e.SlotOpened(slot=slot, task=TASK, kind="resume", due=self.at, cause=question.escalation))
        session = self.session(slot, resumes=question.session)
        self.act(row.action, row.effect, 1, session, approval=question.escalation)
        self.close_session(session, p.slot(self.ledger.reader, slot))

    def live(self, days: int) -> None:
        while self.at < START + days * DAY:
            self.at += self.chance.choice([HOUR, 2 * HOUR, 4 * HOUR, 4 * HOUR])
            if self.chance.random() < 0.01:
                self.at -= 3 * HOUR  # somebody set the clock back
            try:
                self.fire()
                self.people()
                if self.chance.random() < 0.05:
                    expire_payloads(self.ledger, self.at - 90 * DAY)
                self.maybe_crash()
            except Crash:
                while True:
                    try:
                        self.restart()
                        break
                    except Crash:
                        continue


def after(tmp_path: Path, seed: int, days: int) -> World:
    world = World(tmp_path / f"{seed}-{days}", seed)
    try:
        world.live(days)
    except (AssertionError, LedgerRefused) as error:
        pytest.fail(f"seed {seed}: {error!r} after {world.count} events, at {world.at}")
    return world


@pytest.mark.parametrize("seed", [1])
def test_half_a_year_keeps_every_promise(tmp_path, seed):
    world = after(tmp_path, seed, 165)
    reader = world.ledger.reader
    assert world.sessions >= 800
    assert world.crashes >= 10
    assert list(verify_slots(reader, firings, since=0, until=world.at)) == []
    intents = {(event.body["action"], event.body["attempt"]) for event in reader.events(types=["action.intended"])}
    assert set(world.effects) <= intents
    for (action, attempt), times in world.effects.items():
        assert times == 1, f"seed {seed}: {action} attempt {attempt} happened {times} times"
    for row in p.actions(reader):
        happened = sum(1 for action, _ in world.effects if action == row.action)
        assert row.effect not in ("once", "probeable") or happened <= 1, f"seed {seed}: {row.action} was repeated"
    world.ledger.close()
    report = verify(world.directory)
    assert [finding for finding in report.findings if finding.kind != "not-anchored"] == []
    assert report.erased > 0


def test_the_same_seed_gives_the_same_ledger(tmp_path):
    first, second, other = after(tmp_path / "a", 7, 20), after(tmp_path / "b", 7, 20), after(tmp_path / "c", 8, 20)
    assert first.ledger.head == second.ledger.head != other.ledger.head
    for world in (first, second, other):
        world.ledger.close()
