"""A ledger with a story in it: a playbook session that reads, writes, asks and parks; the answer; the session that resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.state import events as e

if TYPE_CHECKING:
    from perdure.state.events import Draft

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
START = 1_795_338_000 * SECOND  # 2026-11-22 09:00:00 UTC
FIRST = "01KANCTRC0AAAAAAAAAA1F1RST"
SECOND_SESSION = "01KANCTRC0AAAAAAAAAASEC0ND"
LIST, WRITE, BLOCK = "01KANCTRC0AAAAAAAAAACT0001", "01KANCTRC0AAAAAAAAAACT0002", "01KANCTRC0AAAAAAAAAACT0003"
QUESTION = "01KANCTRC0AAAAAAAAAAQ0EST1"
POLICIES = "sha256:" + "ab" * 32
DIGEST = "sha256:" + "cd" * 32
TASK = "log-triage"
SCHEDULE = '{"cron":"0 * * * *","timezone":"UTC"}'
SLOT = f"{TASK}/scheduled/2026-11-22T09:00:00Z"
RULE_REPORTS = {"name": "reports", "file": "policies/main.yaml", "line": 4, "decide": "auto"}
RULE_BLOCKS = {"name": "blocks are for a person", "file": "policies/main.yaml", "line": 9, "decide": "escalate"}
BOUNDS = {"steps": 10, "context": 8000, "tokens": 120000, "minutes": 10.0, "cost_usd": 0.5}


def item(kind: str, tokens: int, why: str) -> dict[str, Any]:
    """One line of a manifest."""
    return {"kind": kind, "id": kind, "tokens": tokens, "why": why, "source": "handed in"}


def proposed(
    action: str, step: int, tool: str, effect: Any, args: dict[str, Any], provenance: dict[str, list[str]], **more: Any
) -> e.ActionProposed:
    """A proposal of the first session."""
    payload = {"args": args, "provenance": provenance, "paths": {}, "cwd": None, "says": "", "on_escalate": "park"}
    return e.ActionProposed(
        **{"session": FIRST} | more, action=action, task=TASK, step=step, tool=tool, effect=effect, digest=DIGEST,
        confidence=1.0, key=f"steps[{step - 1}]", payload=payload,
    )  # fmt: skip


def decided(action: str, decision: Any, *rules: dict[str, Any], reason: str, session: str = FIRST) -> e.ActionDecided:
    """A decision with the rules that counted."""
    return e.ActionDecided(
        action=action, session=session, task=TASK, decision=decision, rules=rules, reason=reason, policies=POLICIES
    )


def intended(
    action: str, tool: str, effect: Any, session: str = FIRST, approval: str | None = None
) -> e.ActionIntended:
    """The first attempt's intent."""
    return e.ActionIntended(
        action=action, session=session, task=TASK, tool=tool, effect=effect, digest=DIGEST, attempt=1, approval=approval
    )


def ended(action: str, tool: str, result: Any, session: str = FIRST, **more: Any) -> e.ActionEnded:
    """The first attempt's outcome."""
    values: dict[str, Any] = {"status": "succeeded", "duration_us": 3_100} | more
    error = values.get("error")
    return e.ActionEnded(
        action=action,
        session=session,
        task=TASK,
        tool=tool,
        attempt=1,
        payload={"result": result, "error": error},
        **values,
    )


def until_the_question(
    args: dict[str, Any] | None = None, says: str = "", expires: int = START + 12 * HOUR
) -> list[tuple[Draft, ...]]:
    """The commits up to the parked session's end. `args` replaces those of the last proposal."""
    block = args or {"ip": "203.0.113.9"}
    sources = {name: ["tool:offenders", "instruction"] for name in block}
    question = {
        "tool": "block_ip", "args": block, "provenance": sources, "paths": {}, "argv": ["/usr/sbin/nft", "add", block.get("ip", "")],
        "script": None, "cwd": "/srv/ops", "url": None, "method": None, "effect": "probeable",
        "answerable": ["blocks are for a person"], "rules": [RULE_BLOCKS], "reason": "rule `blocks are for a person` asks", "says": says, "confidence": 1.0,
    }  # fmt: skip
    return [
        (e.DaemonStarted(pid=4242, fence=1, version="0.1.0", host="here"),),
        (e.TaskLoaded(task=TASK, digest=DIGEST, schedule=SCHEDULE, payload="---\nname: log-triage\n---\n"),),
        (
            e.SlotOpened(slot=SLOT, task=TASK, kind="scheduled", due=START),
            e.SessionOpened(
                session=FIRST, task=TASK, slot=SLOT, planner="playbook", bounds=BOUNDS, task_digest=DIGEST, policies=POLICIES,
                fence=1, payload={"instruction": "Read each new log and report."},
            ),
        ),
        (
            e.CompactionFinished(
                session=FIRST, task=TASK, after=0, until=2, events=2, records=1, facts=3, summaries=1, tokens_before=900,
                tokens_after=210, duration_us=12_000,
            ),
            e.ContextAssembled(
                session=FIRST, task=TASK, tokens=2310, budget=8000, factor=1.1, digest=DIGEST,
                payload={
                    "text": "…",
                    "manifest": [item("instruction", 312, "pinned"), item("state", 88, "pinned"), item("record", 640, "recalled: rank 1")],
                    "left_out": [item("record", 4000, "does not fit: 4,000 tokens")],
                },
            ),
        ),
        (
            proposed(LIST, 1, "list_files", "read", {"pattern": "inbox/*.log"}, {"pattern": ["instruction"]}),
            decided(LIST, "auto", RULE_REPORTS, reason="rule `reports` allows"),
            intended(LIST, "list_files", "read"),
        ),
        (ended(LIST, "list_files", {"files": ["inbox/auth.log", "inbox/app.log"]}),),
        (
            proposed(
                WRITE, 2, "write_file", "idempotent", {"path": "reports/2026-11-22.md", "text": "# Log triage\n" + "line\n" * 200},
                {"path": ["config"], "text": ["tool:offenders"]},
            ),
            decided(WRITE, "auto", RULE_REPORTS, reason="rule `reports` allows"),
            intended(WRITE, "write_file", "idempotent"),
        ),
        (ended(WRITE, "write_file", {"bytes": 1013}, undo=True),),
        (e.ActionVerified(action=WRITE, session=FIRST, task=TASK, verifier="probe", passed=True),),
        (
            proposed(BLOCK, 3, "block_ip", "probeable", block, sources),
            decided(BLOCK, "escalate", RULE_BLOCKS, reason="rule `blocks are for a person` asks"),
            e.EscalationOpened(
                escalation=QUESTION, action=BLOCK, digest=DIGEST, session=FIRST, task=TASK, tool="block_ip",
                expires=expires, on_expiry="deny", parks=True, payload={"question": question},
            ),
        ),
        (e.NotificationSent(channel="inbox", about=QUESTION, status="delivered"),),
        (
            e.PostconditionChecked(
                session=FIRST, task=TASK, index=0, kind="file_exists", passed=True,
                payload={"condition": {"file_exists": "reports/2026-11-22.md"}, "detail": "1,013 bytes"},
            ),
            e.SessionClosed(
                session=FIRST, task=TASK, slot=SLOT, status="parked", reason=f"waits for the answer to {QUESTION} (block_ip)",
                steps=3, tokens=0, cost_usd=0.0, duration_us=1_900_000, payload={"saved": {"offset": 17}, "says": "3 offenders"},
            ),
            e.SlotClosed(slot=SLOT, task=TASK, kind="scheduled", due=START, outcome="ran", session=FIRST),
        ),
    ]  # fmt: skip


def the_answer_and_after(note: str = "known attacker") -> list[tuple[Draft, ...]]:
    """The commits of the person's yes and of the session that carries it out."""
    slot = f"{TASK}/resume/2026-11-22T09:05:00Z"
    bounds = BOUNDS | {"steps": 7}
    return [
        (
            e.EscalationAnswered(escalation=QUESTION, task=TASK, answer="approve", uid=0, via="cli", payload={"note": note}),
            e.SlotOpened(slot=slot, task=TASK, kind="resume", due=START + 5 * MINUTE, cause=QUESTION, resumes=FIRST),
        ),
        (
            e.SessionOpened(
                session=SECOND_SESSION, task=TASK, slot=slot, planner="playbook", bounds=bounds, task_digest=DIGEST,
                policies=POLICIES, fence=1, resumes=FIRST, escalation=QUESTION, payload={"instruction": "Read each new log."},
            ),
        ),
        (intended(BLOCK, "block_ip", "probeable", SECOND_SESSION, QUESTION),),
        (ended(BLOCK, "block_ip", "blocked 203.0.113.9\n", SECOND_SESSION),),
        (
            e.SessionClosed(
                session=SECOND_SESSION, task=TASK, slot=slot, status="succeeded", reason="finished; its postcondition holds", steps=1,
                tokens=0, cost_usd=0.0, duration_us=400_000, payload={"saved": {}, "says": ""},
            ),
            e.SlotClosed(slot=slot, task=TASK, kind="resume", due=START + 5 * MINUTE, outcome="ran", session=SECOND_SESSION),
        ),
    ]  # fmt: skip
