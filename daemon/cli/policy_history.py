"""`perdure policy replay`, `shadow`, `suggest`: edited or tried policies over what was done, and rules out of people's answers."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.page_parts import DECISION
from perdure.daemon.cli.policies import WEEKDAYS, policy
from perdure.daemon.cli.spans import Span
from perdure.daemon.cli.terminal import exact, harmless, one_line
from perdure.daemon.cli.words import DAY, HOUR, SECOND, count, moment, short
from perdure.state import projections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from perdure.policies import model
    from perdure.policies.model import ProposedAction
    from perdure.policies.replay import Recorded, Replayed
    from perdure.policies.suggestions import Answered
    from perdure.state.events import Event

PROGRESS_EVERY = 400  # events


@policy.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--since", type=Span(), default="30d", show_default=True, help="How far back.")
@with_json
@with_invocation
def replay(invocation: Invocation, files: tuple[Path, ...], since: int) -> None:
    """Decide every past action again under FILES (default: the workspace's policies), and show what would flip.

    Paths, arguments, provenance, confidence, time of day and calls per hour and day are those of then; facts that the
    ledger does not hold (tokens and cost so far, votes) count as none. Exits 1 where something would be looser.
    """
    from perdure.daemon.cli.progress import counting
    from perdure.daemon.config import load_config
    from perdure.daemon.layout import POLICIES
    from perdure.daemon.tools.registry import tool_specs
    from perdure.daemon.workspace import signatures
    from perdure.policies.loading import load_policies
    from perdure.policies.replay import replay as replay_over

    config = load_config(invocation.workspace)
    paths = list(files) or [config.workspace / POLICIES]
    policies = load_policies(paths, signatures(tool_specs(config)), workspace=config.workspace)
    with counting(invocation, "deciding again") as progress:
        outcome = replay_over(policies, recorded_decisions(invocation, invocation.now() - since, progress))
    invocation.verdict = 1 if outcome.loosened else 0
    if invocation.as_json:
        flips = [
            {
                "tool": tool,
                "was": was,
                "would_be": now,
                "count": number,
                "examples": [
                    {"action": f.recorded.id, "reason": f.decision.reason}
                    for f in outcome.examples.get((tool, was, now), ())
                ],
            }
            for (tool, was, now), number in outcome.flips.most_common()
        ]
        value = {
            "decisions": outcome.decisions,
            "flipped": outcome.flipped,
            "loosened": outcome.loosened,
            "flips": flips,
        }
        invocation.emit("replay", value)
    else:
        _print_replay(invocation, outcome)
    invocation.conclude()


def _print_replay(invocation: Invocation, outcome: Replayed) -> None:
    words = f"{count(outcome.decisions, 'past decision')} decided again: {outcome.flipped:,} would flip"
    invocation.say(
        (words, "heading"), (f", {outcome.loosened:,} of them looser", "bad" if outcome.loosened else "good")
    )
    table = _flips_table()
    for (tool, was, now), number in outcome.flips.most_common():
        table.add_row(f"{number:,} ×", Text(one_line(tool), "name"), _arrow(was, now), "")
        for flip in outcome.examples.get((tool, was, now), ())[:3]:
            args = exact(dict(flip.recorded.action.args))
            when = moment(flip.recorded.at, invocation.zone, invocation.now())
            detail = Text(one_line(args, 80), "faint") + Text(f"  {one_line(flip.decision.reason, 120)}", "faint")
            table.add_row("", Text(short(flip.recorded.id), "id"), Text(when, "faint"), detail)
    invocation.out.print(table)


@policy.command()
@click.option("--since", type=Span(), default="30d", show_default=True, help="How far back.")
@with_json
@with_invocation
def shadow(invocation: Invocation, since: int) -> None:
    """Show the past decisions that rules and files marked `shadow: true` would have changed, had they been in force."""
    reader = invocation.ledger
    flips: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], deque[Event]] = defaultdict(lambda: deque(maxlen=3))
    decisions = 0
    for event in reader.events(types=("action.decided",)):
        if event.at < invocation.now() - since:
            continue
        decisions += 1
        if event.body.get("shadow"):
            row = projections.action(reader, event.body["action"])
            kind = (row.tool if row is not None else "?", event.body["decision"], event.body["shadow"])
            flips[kind] += 1
            examples[kind].append(event)
    if invocation.as_json:
        told = [
            {
                "tool": kind[0],
                "was": kind[1],
                "would_be": kind[2],
                "count": number,
                "examples": [event.body["action"] for event in examples[kind]],
            }
            for kind, number in flips.most_common()
        ]
        invocation.emit("shadow", {"decisions": decisions, "flipped": flips.total(), "flips": told})
        return
    invocation.say((f"{count(decisions, 'decision')}: shadow rules would flip {flips.total():,}", "heading"))
    table = _flips_table()
    for (tool, was, now), number in flips.most_common():
        table.add_row(f"{number:,} ×", Text(one_line(tool), "name"), _arrow(was, now), "")
        for event in examples[tool, was, now]:
            when = moment(event.at, invocation.zone, invocation.now())
            table.add_row("", Text(short(event.body["action"]), "id"), Text(when, "faint"), "")
    invocation.out.print(table)


def _flips_table() -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(overflow="fold")
    return table


def _arrow(was: str, now: str) -> Text:
    (old, old_style), (new, new_style) = (DECISION.get(word, (word, "")) for word in (was, now))
    return Text(old, old_style) + Text(" → ", "faint") + Text(new, new_style)


def recorded_decisions(
    invocation: Invocation, since: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[Recorded]:
    """Every decision since then, with the facts of its moment as far as the ledger holds them. `progress` is told the event that
    was reached, and the last."""
    from perdure.policies.model import Facts
    from perdure.policies.replay import Recorded

    reader = invocation.ledger
    planners: dict[str, str] = {}
    proposals: dict[str, tuple[Event, Mapping[str, Any]]] = {}
    calls: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    last, told = reader.head().seq, 0
    for event in reader.events(types=("session.opened", "action.proposed", "action.decided", "action.intended")):
        body = event.body
        if progress is not None and event.seq >= told + PROGRESS_EVERY:
            told = event.seq
            progress(told, last)
        if event.type == "session.opened":
            planners[body["session"]] = body["planner"]
        elif event.type == "action.intended":
            calls[body["task"], body["tool"]].append(event.at)
        elif event.type == "action.proposed" and event.at >= since:
            held = reader.payload(event.seq)
            if isinstance(held, dict) and isinstance(held.get("args"), dict):
                proposals[body["action"]] = (event, held)
        elif event.type == "action.decided" and body["action"] in proposals:
            proposed, payload = proposals[body["action"]]
            recent = calls[body["task"], proposed.body["tool"]]
            while recent and recent[0] <= event.at - DAY:
                recent.popleft()
            recorded = body.get("facts")
            if recorded is not None:
                facts = Facts(**{"task": body["task"], "planner": planners.get(body["session"], "model"), **recorded})
            else:
                facts = _facts(invocation, proposed, planners.get(body["session"], "model"), recent)
            yield Recorded(
                id=body["action"], at=event.at, action=_action(proposed, payload), facts=facts, decided=body["decision"]
            )


def _facts(invocation: Invocation, proposed: Event, planner: str, recent: deque[int]) -> model.Facts:
    from perdure.policies.model import Facts

    local = datetime.fromtimestamp(proposed.at / SECOND, UTC).astimezone(invocation.zone)
    return Facts(
        task=proposed.body["task"],
        planner=planner,
        confidence=proposed.body["confidence"],
        hour=local.hour,
        minute=local.minute,
        weekday=WEEKDAYS[local.weekday()],
        session_steps=proposed.body["step"],
        tool_calls_hour=sum(1 for at in recent if at > proposed.at - HOUR),
        tool_calls_day=len(recent),
    )


def _action(proposed: Event, payload: Mapping[str, Any]) -> ProposedAction:
    from perdure.policies.model import ProposedAction

    args = payload["args"]
    seen = payload.get("seen")
    if isinstance(seen, dict):
        targets = seen.get("targets") or {}  # one path each in the records of earlier versions
        listed = {text: [paths] if isinstance(paths, str) else paths for text, paths in targets.items()}
        return ProposedAction(
            tool=proposed.body["tool"],
            args=args,
            effect=proposed.body["effect"],
            provenance=payload.get("provenance") or {},
            paths=payload.get("paths") or {},
            cwd=payload.get("cwd"),
            **{**seen, "targets": listed},
        )
    command, script, url, method = (args.get(name) for name in ("command", "script", "url", "method"))
    return ProposedAction(
        tool=proposed.body["tool"],
        args=args,
        effect=proposed.body["effect"],
        provenance=payload.get("provenance") or {},
        paths=payload.get("paths") or {},
        argv=command if isinstance(command, list) else None,
        script=script if isinstance(script, str) else None,
        cwd=payload.get("cwd"),
        host=urlsplit(url).hostname if isinstance(url, str) else None,
        method=method if isinstance(method, str) else None,
    )


@policy.command()
@click.option("--since", type=Span(), default="90d", show_default=True, help="How far back to look for answers.")
@with_json
@with_invocation
def suggest(invocation: Invocation, since: int) -> None:
    """Suggest the narrowest rules that would have decided as people did, with evidence and tests. Writes nothing."""
    from perdure.daemon.config import load_config
    from perdure.daemon.tools.registry import tool_specs
    from perdure.daemon.workspace import signatures
    from perdure.policies.suggestions import suggest as suggest_from

    config = load_config(invocation.workspace)
    answers = list(answered_questions(invocation, invocation.now() - since))
    found = suggest_from(answers, signatures(tool_specs(config)))
    if invocation.as_json:
        values = [
            {"rule": s.rule.name, "approvals": s.approvals, "evidence": list(s.evidence), "text": s.text} for s in found
        ]
        invocation.emit("suggestions", {"answers": len(answers), "suggestions": values})
        return
    if not found:
        why = (
            "A rule needs two approvals of one tool in one task whose arguments differ in one at most, no refusal of the same, and "
            "nothing that cannot be told before it runs."
        )
        invocation.say(f"{count(len(answers), 'answer')}, of which no rule can be made.")
        invocation.say((why, "faint"))
    for suggestion in found:
        evidence = ", ".join(short(each) for each in suggestion.evidence)
        invocation.say((f"# {count(suggestion.approvals, 'approval')}: {evidence}", "faint"))
        invocation.out.print(Text(harmless(suggestion.text)), soft_wrap=True)


def answered_questions(invocation: Invocation, since: int) -> Iterator[Answered]:
    """Every question that a person answered since then, with its arguments."""
    from perdure.policies.suggestions import Answered

    reader = invocation.ledger
    for event in reader.events(types=("escalation.answered",)):
        question = projections.escalation(reader, event.body["escalation"]) if event.at >= since else None
        action = projections.action(reader, question.action) if question is not None else None
        payload = reader.payload(action.seq_proposed) if action is not None else None
        if question is None or not isinstance(payload, dict) or not isinstance(args := payload.get("args"), dict):
            continue
        yield Answered(
            escalation=question.escalation,
            task=question.task,
            tool=question.tool,
            args=args,
            approved=event.body["answer"] == "approve",
        )
