"""The page of one session for people: what was seen, proposed, decided by which rule, done and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.page_layout import (
    add_bound,
    all_calls,
    call_line,
    charged_tokens,
    context_groups,
    cut_text,
    indented,
    notice_row,
    rows_table,
    rule_line,
    seq_mark,
    sequence_marks,
    sequence_text,
)
from perdure.daemon.cli.page_parts import (
    CUT,
    CUT_VALUE,
    DECISION,
    OUTCOME,
    STATUS,
    arguments_table,
    beyond_citation,
    condition_words,
    result_text,
    rules_table,
    status_text,
    who,
)
from perdure.daemon.cli.terminal import bar, exact, harmless, line, one_line
from perdure.daemon.cli.words import (
    count,
    dollars,
    duration,
    from_now,
    full_moment,
    moment,
    short,
    short_digest,
    shorten,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import tzinfo

    from rich.console import RenderableType

    from perdure.daemon.cli.account import Part


class SessionPage:
    """Renders an account. `now` is for relative times; `full` cuts nothing; `root` shortens the policy files' names;
    `command` is how to call Perdure from here."""

    def __init__(
        self,
        account: Part,
        *,
        now: int,
        zone: tzinfo | None,
        full: bool = False,
        root: str = "",
        command: str = "perdure",
    ) -> None:
        self.account, self.now, self.zone, self.root, self.command = account, now, zone, root, command
        self.full = full
        self.cut = 0 if full else CUT

    def __rich__(self) -> RenderableType:
        return Group(*self._parts())

    def _parts(self) -> Iterator[RenderableType]:
        yield self._header()
        yield from self._seen()
        for step in self.account["steps"]:
            yield Text()
            yield from self._step(step)
        yield from self._unstepped()
        yield Text()
        yield from self._checks()
        yield from self._closing()

    # -- header ---------------------------------------------------------------------------------------------------------

    def _header(self) -> RenderableType:
        account = self.account
        status = account["status"]
        rows = rows_table()
        what = status_text(status)
        if account.get("dry_run"):
            what.append("  dry run: effects were decided, not done", "warn")
        rows.add_row("status", what)
        if status == "open":
            rows.add_row("why", Text("it is running, or its end was never written", "warn"))
        else:
            rows.add_row("why", Text(one_line(shorten(str(account["reason"])))))
        rows.add_row("slot", self._slot_words())
        planner = account.get("planner", "?")
        rows.add_row("planner", line(planner, f" ({account['model']})" if account.get("model") else ""))
        if "_opened" in account:
            rows.add_row("when", self._when_words())
        if account.get("resumes"):
            words = line("session ", (short(account["resumes"]), "id"))
            if account.get("answers"):
                words.append_text(line(", after the answer to ", (short(account["answers"]), "id")))
            rows.add_row("resumes", words)
        elif account.get("answers"):
            rows.add_row("after", line("the answer to question ", (short(account["answers"]), "id")))
        rows.add_row("bounds", self._bounds())
        digests = line(
            ("policies ", "faint"), short_digest(str(account.get("policies", ""))),
            ("  task ", "faint"), short_digest(str(account.get("task_digest", ""))),
            ("  fence ", "faint"), str(account.get("fence", "?")),
        )  # fmt: skip
        rows.add_row("in force", digests)
        _, style = STATUS.get(status, ("", ""))
        title = line((f" {account.get('task', 'unknown task')} ", "name"))
        title.append_text(line(("session ", "faint"), (short(account["session"]) + " ", "id")))
        return Panel(rows, title=title, title_align="left", border_style=style, padding=(0, 1))

    def _slot_words(self) -> Text:
        slot = self.account.get("slot", {})
        words = line(slot.get("kind") or "unknown kind")
        if "_due" in slot:
            words.append_text(line(f", due {moment(slot['_due'], self.zone, self.now)}"))
            late = self.account["_opened"] - slot["_due"]
            words.append(f" (opened {duration(late)} later)" if late > 0 else "", "faint")
        if slot.get("cause"):
            words.append_text(line((", because of ", "faint"), short(str(slot["cause"]))))
        if slot.get("outcome"):
            words.append_text(line((" → ", "faint"), slot["outcome"]))
        return words

    def _when_words(self) -> Text:
        account = self.account
        words = line(full_moment(account["_opened"], self.zone))
        if "_closed" in account:
            words.append_text(line((", took ", "faint"), duration(account["duration_us"])))
        else:
            words.append_text(line((", ", "faint"), from_now(account["_opened"], self.now)))
        return words

    def _bounds(self) -> RenderableType:
        account = self.account
        bounds, used = account.get("bounds", {}), account.get("used", {})
        steps = used.get("steps", len(account["steps"]))
        tokens = used.get("tokens", sum(charged_tokens(call) for call in all_calls(account)))
        minutes = account.get("duration_us", max(0, self.now - account.get("_opened", self.now))) / 60_000_000
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        add_bound(table, "steps", steps, bounds.get("steps"), f"{steps:,}", "{:,.0f}")
        add_bound(table, "tokens", tokens, bounds.get("tokens"), f"{tokens:,}", "{:,.0f}")
        for context in account["contexts"][-1:]:
            add_bound(
                table, "context", context["tokens"], context["budget"], f"{context['tokens']:,}", "{:,.0f} tokens"
            )
        add_bound(table, "time", minutes, bounds.get("minutes"), duration(round(minutes * 60_000_000)), "{:g} min")
        cost = used.get("cost_usd", 0.0)
        add_bound(table, "cost", cost, bounds.get("cost_usd"), dollars(cost), "${:.2f}")
        return table

    # -- what was seen --------------------------------------------------------------------------------------------------

    def _seen(self) -> Iterator[RenderableType]:
        account = self.account
        if not account["contexts"] and not account["compactions"]:
            return
        yield Text()
        yield rule_line(line(("seen", "heading")), "")
        rows = rows_table()
        for compaction in account["compactions"]:
            rows.add_row("compacted", self._compaction(compaction))
        for summary in account["model_summaries"]:
            rows.add_row("summary", self._model_summary(summary))
        for context in account["contexts"]:
            rows.add_row("context", self._context_line(context))
            for label, words in context_groups(context, self.cut):
                rows.add_row(label, words)
        yield indented(rows)

    def _compaction(self, compaction: Part) -> Text:
        if not compaction["ok"]:
            return line(("✗ failed: ", "bad"), str(compaction["reason"]), *seq_mark(compaction["seq"]))
        return line(
            f"{count(compaction['events'], 'event')} (#{compaction['after'] + 1}–{compaction['until']}) → "
            f"{count(compaction['records'], 'record')}, {count(compaction['facts'], 'fact')}, "
            f"{count(compaction['summaries'], 'summary', 'summaries')}",
            (f"  {compaction['tokens_before']:,} → {compaction['tokens_after']:,} tokens", "faint"),
            (f", {compaction['left_out']:,} records left out" if compaction["left_out"] else "", "faint"),
            ("  INEFFECTIVE" if compaction["ineffective"] else "", "bad"),
            (f"  {duration(compaction['duration_us'])}", "faint"),
            *seq_mark(compaction["seq"]),
        )

    def _model_summary(self, part: Part) -> Text:
        if part["kept"]:
            tokens = f"  {part['tokens_before']:,} → {part['tokens_after']:,} tokens"
            mark = ", of untrusted text too" if part["untrusted"] else ""
            return line(f"{part['summary']} by {part['model']}{mark}", (tokens, "faint"), *seq_mark(part["seq"]))
        why = "; ".join(str(each) for each in part["why"])
        return line(
            (f"not by the model ({part['reason']})", "warn"), f" {part['summary']}: {why}", *seq_mark(part["seq"])
        )

    def _context_line(self, context: Part) -> Text:
        words = line(f"{context['tokens']:,} of {context['budget']:,} tokens ")
        words.append_text(bar(context["tokens"], context["budget"], 16))
        if context["factor"] != 1:
            words.append(f" counted × {context['factor']:g}", "faint")
        words.append_text(line(*seq_mark(context["seq"])))
        if context["erased"]:
            words.append("  (erased)", "warn")
        return words

    # -- steps ----------------------------------------------------------------------------------------------------------

    def _step(self, step: Part) -> Iterator[RenderableType]:
        when = moment(step["_at"], self.zone, self.now).rpartition(" ")[2]
        if step["kind"] == "rejected":
            yield rule_line(line((f"step {step['step']}  ", "faint"), ("no action", "bad")), when)
            rows = rows_table()
            self._calls(rows, step["calls"])
            rows.add_row("rejected", line((step["reason"], "bad"), f": {step['detail'] or '(no detail)'}"))
            rows.add_row("ledger", sequence_text(step["seqs"]))
            yield indented(rows)
            return
        title = line((f"step {step['step']}  ", "faint"), (step["tool"], "name"))
        if step["key"]:
            title.append_text(line((f"  plan {step['key']}", "faint")))
        yield rule_line(title, f"{step['effect']} · confidence {step['confidence']:.2f} · {when}")
        rows = rows_table()
        self._calls(rows, step["calls"])
        if step["proposed_in"] != self.account["session"]:
            rows.add_row("from", line("session ", (short(step["proposed_in"]), "id"), ", which asked for it"))
        if step["says"]:
            rows.add_row("says", Text(harmless(cut_text(step["says"], self.cut)), "faint"))
        args = (
            Text("(erased)", "warn")
            if step["args"] is None
            else arguments_table(step["args"], step["provenance"], min(self.cut, CUT_VALUE))
        )
        rows.add_row("proposed", args)
        for decision in step["decisions"]:
            self._decision(rows, decision)
        if step["escalation"]:
            self._escalation(rows, step["escalation"])
        for attempt in step["attempts"]:
            self._attempt(rows, attempt, step)
        for check in step["checks"]:
            sign, style = ("✓", "good") if check["passed"] else ("✗", "bad")
            words = "the effect is there" if check["passed"] else "the effect is not there"
            rows.add_row("checked", line((f"{sign} {check['verifier']}", style), f": {words}"))
        rows.add_row(
            "ledger", line(*sequence_marks(step["seqs"]), ("  action ", "faint"), (short(step["action"]), "id"))
        )
        yield indented(rows)

    def _calls(self, rows: Table, calls: Sequence[Part]) -> None:
        for call in calls:
            rows.add_row("model", call_line(call))

    def _decision(self, rows: Table, decision: Part) -> None:
        words, style = DECISION.get(decision["decision"], (decision["decision"], ""))
        reason = beyond_citation(decision["reason"], decision["rules"])
        if reason or not decision["rules"]:
            rows.add_row("decided", line((words, style), (": ", "faint"), shorten(reason or decision["reason"])))
        if decision["rules"]:
            rows.add_row("by" if reason else "decided", rules_table(decision["rules"], self.root))
        if decision["shadow"]:
            words, style = DECISION.get(decision["shadow"], (decision["shadow"], ""))
            rows.add_row("", line(("with its shadow rules in force: ", "faint"), (words, style)))
        if decision["grant"]:
            rows.add_row("", line(("by standing grant ", "faint"), (short(decision["grant"]), "id")))

    def _escalation(self, rows: Table, question: Part) -> None:
        ask = line("question ", (short(question["id"]), "id"))
        if question["joined"]:
            ask.append_text(line((f", asked before by session {short(question['session'])}: joined", "faint")))
        answer = question["answer"]
        if answer is None:
            ask.append_text(line(f", expires {from_now(question['_expires'], self.now)}, then {question['on_expiry']}"))
        rows.add_row("asked", ask)
        if answer is None:
            name = short(question["id"])
            if question["_expires"] > self.now:
                rows.add_row(
                    "answer",
                    line(
                        (f"{self.command} approve {name}", "command"),
                        ("  or  ", "faint"),
                        (f"{self.command} deny {name}", "command"),
                    ),
                )
        elif answer["by"] == "expiry":
            rows.add_row("answered", line((f"expired: {answer['state']}", "warn"), *seq_mark(answer["seq"])))
        else:
            style = "good" if answer["state"] == "approved" else "bad"
            words = line((answer["state"], style), f" by {who(answer['uid'])} over {answer['via']}")
            words.append_text(
                line((f", {moment(answer['_at'], self.zone, self.now)}", "faint"), *seq_mark(answer["seq"]))
            )
            rows.add_row("answered", words)
            if answer["note"]:
                rows.add_row("", line(("“" + str(answer["note"]) + "”", "")))

    def _attempt(self, rows: Table, attempt: Part, step: Part) -> None:
        sign, style = OUTCOME.get(attempt["status"], (str(attempt["status"]), ""))
        words = line((sign, style))
        if attempt["status"] is not None:
            words.append(f" {duration(attempt['duration_us'])}", "faint")
        if attempt["attempt"] > 1:
            words.append(f"  attempt {attempt['attempt']}", "warn")
        if attempt["session"] != self.account["session"]:
            words.append_text(line("  in session ", (short(attempt["session"]), "id")))
        if attempt["approval"]:
            words.append_text(line(("  approved by the answer to ", "faint"), (short(attempt["approval"]), "id")))
        if attempt.get("settled"):
            words.append("  had been unknown, was settled later", "warn")
        rows.add_row("done", words)
        if attempt.get("erased"):
            rows.add_row("result", Text("(erased)", "warn"))
            return
        if attempt.get("error"):
            rows.add_row("error", Text(harmless(cut_text(str(attempt["error"]), self.cut)), "bad"))
        if attempt.get("result") is not None:
            rows.add_row("result", result_text(attempt["result"], self.full))
        if attempt.get("undo"):
            rows.add_row("undo", line((f"{self.command} undo {short(step['action'])}", "command")))

    def _unstepped(self) -> Iterator[RenderableType]:
        calls = self.account["calls_without_step"]
        if not calls:
            return
        yield Text()
        yield rule_line(line(("model calls that led to no step", "heading")), "")
        rows = rows_table()
        self._calls(rows, calls)
        yield indented(rows)

    # -- the end --------------------------------------------------------------------------------------------------------

    def _checks(self) -> Iterator[RenderableType]:
        checks = self.account["postconditions"]
        if not checks:
            return
        yield rule_line(line(("proven", "heading")), "")
        rows = rows_table()
        for check in checks:
            sign, style = ("✓ holds", "good") if check["passed"] else ("✗ fails", "bad")
            what = condition_words(check["condition"], check["kind"])
            words = line((what, "name"), f"  {check['detail'] or ''}", *seq_mark(check["seq"]))
            rows.add_row(Text(sign, style), words)
        yield indented(rows)
        yield Text()

    def _closing(self) -> Iterator[RenderableType]:
        account = self.account
        _, style = STATUS.get(account["status"], ("", ""))
        yield Rule(characters="─", style=style or "faint")
        words = status_text(account["status"])
        words.append_text(line("  ", ("; ".join(self._tally()), "")))
        rows = rows_table()
        rows.add_row("summary", words)
        if account.get("says"):
            rows.add_row("says", Text(harmless(cut_text(str(account["says"]), self.cut))))
        if account.get("saved"):
            saved = exact(account["saved"])
            rows.add_row("saved", Text(cut_text(saved, self.cut)))
        for notice in account["notices"]:
            rows.add_row(*notice_row(notice))
        first, last = account.get("first_seq", 0), account["last_seq"]
        rows.add_row(
            "ledger", line(f"events #{first}–{last}", ("  the chain: ", "faint"), (f"{self.command} verify", "command"))
        )
        for step in account["steps"]:
            question = step.get("escalation")
            if question and question["answer"] is None and question["_expires"] > self.now:
                rows.add_row("next", line((f"{self.command} inbox show {short(question['id'])}", "command")))
        yield indented(rows)

    def _tally(self) -> Iterator[str]:
        steps = self.account["steps"]
        yield count(len(steps), "step")
        mine = [a["status"] for step in steps if step["kind"] == "action" for a in step["attempts"][-1:]]
        asked = sum(1 for step in steps if step.get("escalation"))
        denied = sum(
            1 for s in steps if s["kind"] == "action" and s["decisions"] and s["decisions"][-1]["decision"] == "deny"
        )
        rejected = sum(1 for step in steps if step["kind"] == "rejected")
        for number, words in (
            (mine.count("succeeded"), "done"),
            (mine.count("failed"), "failed"),
            (mine.count("unknown"), "unknown"),
            (asked, "asked"),
            (denied, "denied"),
            (rejected, "rejected"),
        ):
            if number:
                yield f"{number} {words}"
        checks = self.account["postconditions"]
        if checks:
            yield f"{sum(check['passed'] for check in checks)} of {count(len(checks), 'postcondition')} hold"
