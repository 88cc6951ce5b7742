"""Real ledgers, told in a few words each, and the memory made of them."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest

from perdure.memory.context import ContextRequest, Pinned
from perdure.memory.memory import Memory
from perdure.state import events as e
from perdure.state.ledger import Ledger

MINUTE = 60_000_000
DAY = 86_400_000_000
START = 1_790_000_000_000_000


def proposed(action, session, step, task, tool, effect, args, provenance=None):
    said = {"args": args or {}, "provenance": provenance or {}, "paths": {}, "cwd": None, "says": ""}
    return e.ActionProposed(
        action=action, session=session, task=task, step=step, tool=tool, effect=effect, digest=f"sha256:{action}",
        confidence=1.0, payload=said,
    )  # fmt: skip


class Past:
    """A ledger in a directory, made there or gone on with. `at` is the clock; every reading moves it on by a microsecond."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.at = START
        self._salts = itertools.count()
        self._ids = itertools.count(1)
        self.alarms: list[tuple[str, str]] = []
        path = directory / "ledger.db"
        if path.exists():
            self.ledger = Ledger.open(path, now=self.now, fence=1, entropy=self._entropy)
            self.at = self.ledger.head.at + MINUTE
            self._ids = itertools.count(self.ledger.head.seq)
        else:
            self.ledger = Ledger.create(path, now=self.now, workspace="past", entropy=self._entropy)

    def now(self) -> int:
        self.at += 1
        return self.at

    def _entropy(self, size: int) -> bytes:
        return hashlib.sha256(b"%d" % next(self._salts)).digest()[:size]

    def alarm(self, code: str, words: str) -> None:
        self.alarms.append((code, words))

    def codes(self) -> list[str]:
        return [code for code, _ in self.alarms]

    def memory(self, embedding="none", **options) -> Memory:
        return Memory.open(
            self.directory, ledger=self.ledger, now=self.now, embedding=embedding, alarm=self.alarm, **options
        )

    def close(self) -> None:
        self.ledger.close()

    # -- telling ------------------------------------------------------------------------------------------------------

    def session(
        self, *steps, task="triage", says="done", saved=None, status="succeeded", close=True, dry_run=None
    ) -> str:
        """A session with these steps, each a function that takes the session and its number; returns its id."""
        session, due = f"S{next(self._ids)}", self.at
        slot = f"{task}/manual/{session}"
        self.ledger.commit(
            e.SlotOpened(slot=slot, task=task, kind="manual", due=due),
            e.SessionOpened(
                session=session,
                task=task,
                slot=slot,
                planner="playbook",
                bounds={"steps": 10},
                task_digest="sha256:t",
                policies="sha256:p",
                fence=self.ledger.fence,
                dry_run=dry_run,
                payload="Read the logs.",
            ),
        )
        for number, step in enumerate(steps, 1):
            self.at += MINUTE
            step(session, number, task)
        if close:
            self.ledger.commit(
                e.SessionClosed(
                    session=session,
                    task=task,
                    slot=slot,
                    status=status,
                    reason="the plan was carried out",
                    steps=len(steps),
                    tokens=0,
                    cost_usd=0.0,
                    duration_us=5,
                    payload={"saved": saved or {}, "says": says},
                ),
                e.SlotClosed(slot=slot, task=task, kind="manual", due=due, outcome="ran", session=session),
            )
        return session

    def action(self, tool="read_file", args=None, result="", *, error=None, status=None, provenance=None):
        """A step: an action decided auto that ran and ended."""

        def tell(session, number, task):
            action = f"A{next(self._ids)}"
            self.ledger.commit(
                proposed(action, session, number, task, tool, "idempotent", args, provenance),
                e.ActionDecided(
                    action=action,
                    session=session,
                    task=task,
                    decision="auto",
                    reason="allowed",
                    policies="sha256:p",
                    rules=[{"name": "all", "file": "p.yaml", "line": 1, "decide": "auto"}],
                ),
                e.ActionIntended(
                    action=action,
                    session=session,
                    task=task,
                    tool=tool,
                    effect="idempotent",
                    digest=f"sha256:{action}",
                    attempt=1,
                ),
            )
            self.ledger.commit(
                e.ActionEnded(
                    action=action,
                    session=session,
                    task=task,
                    tool=tool,
                    attempt=1,
                    duration_us=5,
                    status=status or ("failed" if error else "succeeded"),
                    error=error and error[:80],
                    payload={"result": result, "error": error},
                )
            )

        return tell

    def remember(self, subject, attribute, value):
        fact = {"subject": subject, "attribute": attribute, "value": value}
        return self.action("remember", fact, fact)

    def refused(self, tool="block_ip", args=None, decision="deny", reason="rule never ourselves"):
        """A step that policies denied, or that waits for a person."""

        def tell(session, number, task):
            action = f"A{next(self._ids)}"
            drafts = [
                proposed(action, session, number, task, tool, "probeable", args),
                e.ActionDecided(
                    action=action,
                    session=session,
                    task=task,
                    decision=decision,
                    reason=reason,
                    policies="sha256:p",
                    rules=[{"name": "never ourselves", "file": "policies/main.yaml", "line": 14, "decide": decision}],
                ),
            ]
            if decision == "escalate":
                drafts.append(
                    e.EscalationOpened(
                        escalation=f"E-{action}",
                        action=action,
                        digest=f"sha256:{action}",
                        session=session,
                        task=task,
                        tool=tool,
                        expires=self.at + DAY,
                        on_expiry="deny",
                        parks=False,
                        payload={"question": "?"},
                    )
                )
            self.ledger.commit(*drafts)

        return tell

    def pin(self, text, task=None) -> str:
        pin = f"P{next(self._ids)}"
        self.ledger.commit(e.MemoryPinned(pin=pin, task=task, uid=0, payload={"text": text}))
        return pin

    def correct(self, subject, attribute, value, task=None) -> None:
        fact = {"subject": subject, "attribute": attribute, "value": value}
        self.ledger.commit(e.MemoryCorrected(task=task, uid=0, payload=fact))


def request(
    query="what happened", *, budget=4_000, pinned=None, scope="triage", factor=1.0, overhead=0, now=START + DAY
):
    return ContextRequest(
        task="triage",
        session="S-now",
        scope=scope,
        query=query,
        budget=budget,
        overhead=overhead,
        factor=factor,
        now=now,
        pinned=[Pinned(kind="instruction", text="Read the new logs and report.")] if pinned is None else pinned,
    )


@pytest.fixture
def ask():
    return request


@pytest.fixture
def past(tmp_path):
    past = Past(tmp_path / "state")
    yield past
    past.close()
