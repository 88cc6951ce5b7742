"""`perdure inbox`, `approve`, `deny`: the questions that wait for a person, and the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.account import question_of
from perdure.daemon.cli.invocation import Invocation, task_option, with_invocation, with_json
from perdure.daemon.cli.page_parts import arguments_table, exact_lines, rules_table, who
from perdure.daemon.cli.terminal import WIDE, exact, line, one_line
from perdure.daemon.cli.words import DAY, HOUR, from_now, full_moment, iso, moment, short, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.daemon.cli.account import Part
    from perdure.state.projections import EscalationRow

STATE_STYLE = {"open": "ask", "approved": "good", "used": "good", "denied": "bad", "expired": "warn", "overdue": "warn"}


@click.group(invoke_without_command=True)
@click.option("--all", "everything", is_flag=True, help="Also the questions that have been answered or have expired.")
@task_option("Only this task's.")
@with_json
@click.pass_context
@with_invocation
def inbox(invocation: Invocation, context: click.Context, everything: bool, task: str | None) -> None:
    """List the questions that wait for a person."""
    if context.invoked_subcommand is not None:
        return
    from perdure.state import projections

    rows = projections.escalations(invocation.ledger, open_only=not everything, task=task)
    if invocation.as_json:
        now = invocation.now()
        invocation.emit("inbox", {"questions": [row_json(row, now) for row in rows]})
        return
    if not rows:
        invocation.say(
            ("No questions are open.", "good") if not everything else ("No question was ever asked.", "faint")
        )
        return
    invocation.out.print(questions_table(invocation, rows, states=everything))
    invocation.say()
    now = invocation.now()
    waiting = [row for row in rows if _state(row, now) == "open"]
    if not waiting:
        return
    command, name = invocation.command, short(waiting[0].escalation)
    invocation.say(("Look closer  ", "faint"), (f"{command} inbox show {name}", "command"))
    either = ((f"{command} approve {name}", "command"), ("  or  ", "faint"), (f"{command} deny {name}", "command"))
    invocation.say(("Answer       ", "faint"), *either)


def row_json(row: EscalationRow, now: int) -> dict[str, Any]:
    """A question as JSON, without what it asks about (that is `inbox show`)."""
    return {
        "escalation": row.escalation,
        "task": row.task,
        "tool": row.tool,
        "action": row.action,
        "session": row.session,
        "digest": row.digest,
        "state": _state(row, now),
        "asked_at": iso(row.opened_at),
        "expires_at": iso(row.expires),
        "on_expiry": row.on_expiry,
        "parks": bool(row.parks),
        "joined": row.joined,
        "answered_by_uid": row.uid,
        "seq": row.seq,
    }


def _state(row: EscalationRow, now: int) -> str:
    """`overdue`: its time is up, and no daemon has looked since."""
    return "overdue" if row.state == "open" and row.expires <= now else row.state


def questions_table(invocation: Invocation, rows: list[EscalationRow], *, states: bool = False) -> Table:
    """One row for each question: id, what it would do, since when, until when."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    wide = invocation.out.width >= WIDE
    for title in ("question", "task", "would do", *(["asked"] if wide else []), "expires"):
        table.add_column(title, no_wrap=title != "would do", overflow="fold")
    if states:
        table.add_column("state", no_wrap=True)
    now = invocation.now()
    for row in rows:
        payload = invocation.ledger.payload(row.seq)
        asked = payload.get("question") if isinstance(payload, dict) else None
        args = asked.get("args") if isinstance(asked, dict) else None
        what = line((row.tool, "name"), " ", _brief(args))
        if row.joined:
            what.append(f"  (asked for {row.joined + 1} times)", "faint")
        left = row.expires - now
        expiry = (
            Text(from_now(row.expires, now), style="bad" if left < HOUR else "") if row.state == "open" else Text("")
        )
        if row.state == "open":
            expiry.append(f", then {row.on_expiry}", "faint")
        cells: list[Text | str] = [
            Text(short(row.escalation), "id"),
            one_line(row.task),
            what,
            *([from_now(row.opened_at, now)] if wide else []),
            expiry,
        ]
        if states:
            state = _state(row, now)
            cells.append(Text(state, STATE_STYLE.get(state, "")))
        table.add_row(*cells)
    return table


def _brief(args: Any) -> str:
    if not isinstance(args, dict):
        return "(erased)"
    text = ", ".join(f"{name}={exact(value)}" for name, value in args.items())
    return text if len(text) <= 80 else text[:79] + "…"


@inbox.command()
@click.argument("question")
@with_json
@with_invocation
def show(invocation: Invocation, question: str) -> None:
    """Show exactly what would run, where each argument came from, and which rules asked.

    QUESTION is its id, or the beginning or end of it.
    """
    from perdure.daemon.cli.account import public
    from perdure.state import projections

    part = question_of(invocation.ledger, projections.resolve(invocation.ledger, "escalation", question))
    assert part is not None
    if part["state"] == "open" and "__" in part["tool"]:  # an MCP server's: is it what a person has accepted?
        from perdure.daemon.mcp.acceptance import not_accepted

        part["not_accepted"] = not_accepted(invocation.ledger, part["tool"])
    if invocation.as_json:
        invocation.emit("question", public(part))
        return
    _print_question(invocation, part)


def _print_question(invocation: Invocation, part: Part) -> None:
    asked: Mapping[str, Any] = part["question"]
    now, zone = invocation.now(), invocation.zone
    name = short(part["escalation"])
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="faint", width=12, no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("state", line((part["state"], STATE_STYLE.get(part["state"], ""))))
    rows.add_row("asked by", line((part["task"], "name"), " in session ", (short(part["session"]), "id"),
                                  f", {full_moment(part['_asked'], zone)} ({from_now(part['_asked'], now)})"))  # fmt: skip
    rows.add_row("expires", _expiry(part, now, invocation))
    if reason := asked.get("reason"):
        rows.add_row("because", shorten(one_line(str(reason))))
    if says := asked.get("says"):
        rows.add_row("planner says", Text(one_line(str(says)), "faint"))
    confidence = asked.get("confidence")
    if isinstance(confidence, float) and confidence < 1.0:
        stated = f", it says {asked['stated']:.2f} itself" if isinstance(asked.get("stated"), float) else ""
        rows.add_row("confidence", line(f"{confidence:.2f} calibrated", (stated, "faint")))
    if unverified := asked.get("unverified"):
        steps = ", ".join(one_line(str(step)) for step in unverified)
        rows.add_row("unverified", line((f"{steps}; together {asked.get('session_confidence', 0):.2f}", "warn")))
    for joined in part["joined_by"]:
        rows.add_row("joined by", line("session ", (short(joined["session"]), "id"), (f"  #{joined['seq']}", "place")))
    title = line(" question ", (name + " ", "id"))
    invocation.out.print(
        Panel(rows, title=title, title_align="left", border_style=STATE_STYLE.get(part["state"], ""), padding=(0, 1))
    )
    if part["action"]:
        _print_action(invocation, part, asked)
    else:
        _print_tried(invocation, asked)
    invocation.say()
    _print_answer(invocation, part, name, now)


def _print_action(invocation: Invocation, part: Part, asked: Mapping[str, Any]) -> None:
    out = invocation.out
    invocation.say(("What would run, exactly", "heading"))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(width=12, no_wrap=True, style="faint")
    rows.add_column(overflow="fold")
    rows.add_row("  tool", line((part["tool"], "name"), (f"  {asked.get('effect', '')}", "faint")))
    if "args" in asked:
        rows.add_row("  arguments", arguments_table(asked["args"], asked.get("provenance", {}), 0))
    else:
        rows.add_row("  arguments", Text("(erased: it can no longer be shown, so better deny it)", "warn"))
    for label, key in (("  program", "argv"), ("  in", "cwd"), ("  url", "url"), ("  method", "method")):
        if asked.get(key):
            rows.add_row(label, Text(exact(asked[key])))
    if asked.get("script"):
        rows.add_row("  shell text", exact_lines(str(asked["script"])))
    for argument, paths in dict(asked.get("paths") or {}).items():
        rows.add_row("  path", line(f"{argument} → ", (", ".join(paths), "name")))
    rows.add_row("  digest", Text(one_line(part["digest"]), "faint"))
    out.print(rows)
    invocation.say()
    if tool := part.get("not_accepted"):
        from perdure.daemon.cli.accepting import STANDING_WORDS, print_listed

        invocation.say(("The tool", "heading"), "  ", STANDING_WORDS[tool["standing"]])
        print_listed(invocation, tool)
        invocation.say()
    _print_vote(invocation, asked.get("vote"))
    invocation.say(("Rules that counted", "heading"))
    rules = asked.get("rules") or []
    if rules:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=0)
        grid.add_column()
        grid.add_row("", rules_table(rules, str(invocation.workspace)))
        out.print(grid)
    else:
        invocation.say("  none: what no rule decides is asked")


def _print_tried(invocation: Invocation, asked: Mapping[str, Any]) -> None:
    """What a task has tried that its circuit breaker stopped."""
    invocation.say(("What was tried", "heading"), "  newest first")
    for session in asked.get("tried") or ():
        steps = [f"{step['tool']} {step['ended']}" for step in session["steps"]]
        if session["earlier_steps"]:
            steps.insert(0, f"{session['earlier_steps']} steps")
        invocation.say(
            ("  session ", "faint"), (short(session["session"]), "id"), f"  {', then '.join(steps) or 'no step'}"
        )
        invocation.say("    ", (shorten(one_line(session["reason"])), "warn"))


def _print_vote(invocation: Invocation, vote: object) -> None:
    """What was voted for, where a vote found no winner."""
    if not isinstance(vote, dict):
        return
    invocation.say(("The vote", "heading"), f"  {vote.get('draws')} draws, nothing led by {vote.get('ahead_by')}")
    for candidate in vote.get("candidates") or ():
        invocation.say(f"  {exact(candidate)}")
    invocation.say()


def _expiry(part: Part, now: int, invocation: Invocation) -> Text:
    left = part["_expires"] - now
    if part["state"] != "open":
        return line(full_moment(part["_expires"], invocation.zone))
    if left <= 0:
        return line(("its time is up", "bad"), f": {part['on_expiry']}, as soon as the daemon looks")
    style = "bad" if left < HOUR else "warn" if left < DAY else ""
    then = "nothing runs" if part["on_expiry"] == "deny" else "it runs without you"
    return line((from_now(part["_expires"], now), style), f" ({moment(part['_expires'], invocation.zone, now)}), then ",
                (part["on_expiry"], "name"), f": {then}")  # fmt: skip


def _print_answer(invocation: Invocation, part: Part, name: str, now: int) -> None:
    answer = part["answer"]
    if answer is None and not part["action"] and part["state"] == "open":
        invocation.say(
            ("Let the task go on  ", "faint"), (f"{invocation.command} approve {name} --note 'why'", "command")
        )
        invocation.say(("Leave it stopped    ", "faint"), (f"{invocation.command} deny {name} --note 'why'", "command"))
        return
    if answer is None and part["_expires"] > now and part["action"]:
        invocation.say(
            ("Let it run, once   ", "faint"), (f"{invocation.command} approve {name} --note 'why'", "command")
        )
        invocation.say(("From now on, too   ", "faint"), (f"{invocation.command} approve {name} --always", "command"),
                       ("   (a grant for these arguments; `perdure grants revoke` takes it back)", "faint"))  # fmt: skip
        invocation.say(("Refuse it          ", "faint"), (f"{invocation.command} deny {name} --note 'why'", "command"))
        return
    if answer is None:
        return
    who_said = who(answer["uid"]) if answer["by"] == "person" else "its expiry"
    invocation.say(("Answer  ", "faint"), (answer["state"], STATE_STYLE.get(answer["state"], "")), f" by {who_said}",
                   (f"  #{answer['seq']}", "place"))  # fmt: skip
    if answer["note"]:
        invocation.say("        “", answer["note"], "”")


@click.command()
@click.argument("question")
@click.option("--note", default="", help="Why; it goes into the ledger.")
@click.option(
    "--always", is_flag=True, help="Also for the same arguments from now on: a standing grant, until revoked."
)
@with_json
@with_invocation
def approve(invocation: Invocation, question: str, note: str, always: bool) -> None:
    """Let the one action run that QUESTION shows: once, exactly so, before it expires."""
    _answer(invocation, question, "approve", note, always)


@click.command()
@click.argument("question")
@click.option("--note", default="", help="Why; it goes into the ledger and is told to the planner.")
@with_json
@with_invocation
def deny(invocation: Invocation, question: str, note: str) -> None:
    """Refuse the action that QUESTION shows, and the same action again until the question would have expired."""
    _answer(invocation, question, "deny", note, always=False)


def _answer(invocation: Invocation, question: str, answer: str, note: str, always: bool) -> None:
    result = invocation.perform("answer", escalation=question, answer=answer, note=note, always=always)
    if invocation.as_json:
        invocation.emit("answer", result)
        return
    style, word = ("good", "Approved") if answer == "approve" else ("bad", "Denied")
    invocation.say((word, style), " question ", (short(str(result["escalation"])), "id"), ".")
    for grant in result.get("grants") or ():
        invocation.say("From now on the same is granted: ", (short(str(grant)), "id"),
                       ("  (perdure grants revoke takes it back)", "faint"))  # fmt: skip
    if "paused" in result:
        ends = "stays stopped" if result["paused"] else "goes on with its next slot"
        invocation.say(("The task ", "faint"), (str(result["task"]), "name"), f" {ends}.")
    slots = result.get("slots") or []
    for slot in slots:
        invocation.say(("Next: ", "faint"), f"the slot {slot}, ", "which runs as soon as a daemon does")
