"""The page of one session for people: what was seen, proposed, decided by which rule, done and checked."""

from __future__ import annotations

import pwd
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

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
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import tzinfo

    from rich.console import RenderableType

    from perdure.daemon.cli.account import Part

STATUS: dict[str, tuple[str, str]] = {
    "succeeded": ("✓", "good"),
    "unverified": ("○", "warn"),
    "failed": ("✗", "bad"),
    "parked": ("?", "ask"),
    "limited": ("■", "bad"),
    "interrupted": ("■", "warn"),
    "open": ("▶", "id"),
}
DECISION: dict[str, tuple[str, str]] = {
    "auto": ("auto", "good"),
    "escalate": ("ask a person", "ask"),
    "deny": ("deny", "bad"),
    "require": ("require", "id"),
    "grant": ("grant", "good"),
}
OUTCOME: dict[str | None, tuple[str, str]] = {
    "succeeded": ("✓", "good"),
    "failed": ("✗", "bad"),
    "unknown": ("‽ unknown", "bad"),
    None: ("… no outcome yet", "warn"),
}
# Where a value came from, from trusted to not.
SOURCE_STYLE = {"instruction": "good", "person": "good", "config": "good", "memory": "id", "model": "warn"}
CUT = 240
LABEL = 10


def status_text(status: str) -> Text:
    """A session's status with its sign."""
    sign, style = STATUS.get(status, ("·", "faint"))
    return Text(f"{sign} {one_line(status)}", style=style)


def who(uid: int | None) -> str:
    """A user as people know them: name and uid."""
    if uid is None:
        return "nobody"
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def sources(names: Sequence[str]) -> Text:
    """Provenance tags of one argument."""
    tags = Text()
    for name in names:
        if tags:
            tags.append(" + ", "faint")
        style = "ask" if name.startswith(("tool:", "mcp:")) else SOURCE_STYLE.get(name, "ask")
        tags.append(one_line(name), style)
    return tags or Text("not recorded", "warn")


def arguments_table(args: Mapping[str, Any], provenance: Mapping[str, Sequence[str]], cut: int) -> RenderableType:
    """One row for each argument: its name, its exact value, where it came from."""
    if not args:
        return Text("no arguments", "faint")
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(style="name", no_wrap=True)
    table.add_column(overflow="fold", ratio=None)
    table.add_column(no_wrap=True)
    for name, value in args.items():
        table.add_row(
            one_line(name), argument_text(value, cut), Text("← ", "faint") + sources(provenance.get(name, ()))
        )
    return table


def argument_text(value: Any, cut: int) -> Text:
    """An argument's exact value; where it may be cut, a long text shows its first line and how much there is of it."""
    if cut and isinstance(value, str) and "\n" in value.rstrip("\n"):
        first = value.split("\n", 1)[0]
        rest = f" … {count(len(value.splitlines()), 'line')}, {len(value):,} characters"
        return Text(exact(first[:80])).append(rest, "faint")
    shown = exact(value)
    if not cut or len(shown) <= cut:
        return Text(shown)
    return Text(shown[:cut]).append(f" … {len(shown) - cut:,} more characters", "faint")


def rules_table(rules: Sequence[Mapping[str, Any]], root: str = "") -> RenderableType:
    """One row for each rule that counted: what it asked for, its name, file and line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="place", overflow="fold")
    for rule in rules:
        words, style = DECISION.get(str(rule["decide"]), (str(rule["decide"]), ""))
        place = str(rule["file"]).removeprefix(root + "/") if root else str(rule["file"])
        table.add_row(Text(words, style), one_line(str(rule["name"])), one_line(f"{place}:{rule['line']}"))
    return table


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
        rows = _rows()
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
        tokens = used.get("tokens", sum(_charged(call) for call in _calls(account)))
        minutes = account.get("duration_us", max(0, self.now - account.get("_opened", self.now))) / 60_000_000
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        _bound(table, "steps", steps, bounds.get("steps"), f"{steps:,}", "{:,.0f}")
        _bound(table, "tokens", tokens, bounds.get("tokens"), f"{tokens:,}", "{:,.0f}")
        for context in account["contexts"][-1:]:
            _bound(table, "context", context["tokens"], context["budget"], f"{context['tokens']:,}", "{:,.0f} tokens")
        _bound(table, "time", minutes, bounds.get("minutes"), duration(round(minutes * 60_000_000)), "{:g} min")
        cost = used.get("cost_usd", 0.0)
        _bound(table, "cost", cost, bounds.get("cost_usd"), dollars(cost), "${:.2f}")
        return table

    # -- what was seen --------------------------------------------------------------------------------------------------

    def _seen(self) -> Iterator[RenderableType]:
        account = self.account
        if not account["contexts"] and not account["compactions"]:
            return
        yield Text()
        yield _rule(line(("seen", "heading")), "")
        rows = _rows()
        for compaction in account["compactions"]:
            rows.add_row("compacted", self._compaction(compaction))
        for context in account["contexts"]:
            rows.add_row("context", self._context_line(context))
            for label, words in context_groups(context, self.cut):
                rows.add_row(label, words)
        yield _indented(rows)

    def _compaction(self, compaction: Part) -> Text:
        if not compaction["ok"]:
            return line(("✗ failed: ", "bad"), str(compaction["reason"]), *_seq(compaction["seq"]))
        return line(
            f"{count(compaction['events'], 'event')} (#{compaction['after'] + 1}–{compaction['until']}) → "
            f"{count(compaction['records'], 'record')}, {count(compaction['facts'], 'fact')}, "
            f"{count(compaction['summaries'], 'summary', 'summaries')}",
            (f"  {compaction['tokens_before']:,} → {compaction['tokens_after']:,} tokens", "faint"),
            (f"  {duration(compaction['duration_us'])}", "faint"),
            *_seq(compaction["seq"]),
        )

    def _context_line(self, context: Part) -> Text:
        words = line(f"{context['tokens']:,} of {context['budget']:,} tokens ")
        words.append_text(bar(context["tokens"], context["budget"], 16))
        if context["factor"] != 1:
            words.append(f" counted × {context['factor']:g}", "faint")
        words.append_text(line(*_seq(context["seq"])))
        if context["erased"]:
            words.append("  (erased)", "warn")
        return words

    # -- steps ----------------------------------------------------------------------------------------------------------

    def _step(self, step: Part) -> Iterator[RenderableType]:
        when = moment(step["_at"], self.zone, self.now).rpartition(" ")[2]
        if step["kind"] == "rejected":
            yield _rule(line((f"step {step['step']}  ", "faint"), ("no action", "bad")), when)
            rows = _rows()
            self._calls(rows, step["calls"])
            rows.add_row("rejected", line((step["reason"], "bad"), f": {step['detail'] or '(no detail)'}"))
            rows.add_row("ledger", _sequence(step["seqs"]))
            yield _indented(rows)
            return
        title = line((f"step {step['step']}  ", "faint"), (step["tool"], "name"))
        if step["key"]:
            title.append_text(line((f"  {step['key']}", "faint")))
        yield _rule(title, when)
        rows = _rows()
        self._calls(rows, step["calls"])
        if step["proposed_in"] != self.account["session"]:
            rows.add_row("from", line("session ", (short(step["proposed_in"]), "id"), ", which asked for it"))
        if step["says"]:
            rows.add_row("says", Text(harmless(_cut(step["says"], self.cut)), "faint"))
        args = (
            Text("(erased)", "warn")
            if step["args"] is None
            else arguments_table(step["args"], step["provenance"], self.cut)
        )
        rows.add_row("proposed", args)
        facts = line((f"{step['effect']} · confidence {step['confidence']:.2f}", "faint"))
        rows.add_row("", facts)
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
            "ledger", line(*_sequence_parts(step["seqs"]), ("  action ", "faint"), (short(step["action"]), "id"))
        )
        yield _indented(rows)

    def _calls(self, rows: Table, calls: Sequence[Part]) -> None:
        for call in calls:
            rows.add_row("model", call_line(call))

    def _decision(self, rows: Table, decision: Part) -> None:
        words, style = DECISION.get(decision["decision"], (decision["decision"], ""))
        rows.add_row("decided", line((words, style), (": ", "faint"), shorten(decision["reason"])))
        if decision["rules"]:
            rows.add_row("", rules_table(decision["rules"], self.root))
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
            rows.add_row("answered", line((f"expired: {answer['state']}", "warn"), *_seq(answer["seq"])))
        else:
            style = "good" if answer["state"] == "approved" else "bad"
            words = line((answer["state"], style), f" by {who(answer['uid'])} over {answer['via']}")
            words.append_text(line((f", {moment(answer['_at'], self.zone, self.now)}", "faint"), *_seq(answer["seq"])))
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
            rows.add_row("error", Text(harmless(_cut(str(attempt["error"]), self.cut)), "bad"))
        if attempt.get("result") is not None:
            rows.add_row("result", result_text(attempt["result"], self.full))
        if attempt.get("undo"):
            rows.add_row("undo", line((f"{self.command} undo {short(step['action'])}", "command")))

    def _unstepped(self) -> Iterator[RenderableType]:
        calls = self.account["calls_without_step"]
        if not calls:
            return
        yield Text()
        yield _rule(line(("model calls that led to no step", "heading")), "")
        rows = _rows()
        self._calls(rows, calls)
        yield _indented(rows)

    # -- the end --------------------------------------------------------------------------------------------------------

    def _checks(self) -> Iterator[RenderableType]:
        checks = self.account["postconditions"]
        if not checks:
            return
        yield _rule(line(("proven", "heading")), "")
        rows = _rows()
        for check in checks:
            sign, style = ("✓ holds", "good") if check["passed"] else ("✗ fails", "bad")
            what = exact(check["condition"]) if check["condition"] is not None else str(check["kind"])
            words = line((what, "name"), f"  {check['detail'] or ''}", *_seq(check["seq"]))
            rows.add_row(Text(sign, style), words)
        yield _indented(rows)
        yield Text()

    def _closing(self) -> Iterator[RenderableType]:
        account = self.account
        _, style = STATUS.get(account["status"], ("", ""))
        yield Rule(characters="─", style=style or "faint")
        words = status_text(account["status"])
        words.append_text(line("  ", ("; ".join(self._tally()), "")))
        rows = _rows()
        rows.add_row("summary", words)
        if account.get("says"):
            rows.add_row("says", Text(harmless(_cut(str(account["says"]), self.cut))))
        if account.get("saved"):
            saved = exact(account["saved"])
            rows.add_row("saved", Text(_cut(saved, self.cut)))
        for notice in account["notices"]:
            rows.add_row(*_notice(notice))
        first, last = account.get("first_seq", 0), account["last_seq"]
        rows.add_row(
            "ledger", line(f"events #{first}–{last}", ("  the chain: ", "faint"), (f"{self.command} verify", "command"))
        )
        for step in account["steps"]:
            question = step.get("escalation")
            if question and question["answer"] is None and question["_expires"] > self.now:
                rows.add_row("next", line((f"{self.command} inbox show {short(question['id'])}", "command")))
        yield _indented(rows)

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


def context_groups(context: Part, cut: int = CUT) -> Iterator[tuple[str, Text]]:
    """The manifest in brief: tokens by how things came in, then the best of what stayed out."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in context["manifest"]:
        groups.setdefault(str(item.get("why", "")).split(":")[0].split(" ")[0] or "other", []).append(item)
    for name, items in groups.items():
        tokens = sum(int(item.get("tokens", 0)) for item in items)
        kinds: dict[str, int] = {}
        for item in items:
            kinds[str(item.get("kind", "?"))] = kinds.get(str(item.get("kind", "?")), 0) + int(item.get("tokens", 0))
        detail = ", ".join(f"{kind} {amount:,}" for kind, amount in kinds.items())
        yield name, line(f"{count(len(items), 'item')}, {tokens:,} tokens", (f"  {_cut(detail, cut)}", "faint"))
    left_out = context["left_out"]
    if left_out:
        tokens = sum(int(item.get("tokens", 0)) for item in left_out)
        best = left_out[0]
        words = f"  first: {best.get('kind')} {best.get('id')}, {best.get('why')}"
        yield "left out", line(f"{count(len(left_out), 'item')}, {tokens:,} tokens", (_cut(words, cut), "faint"))


def call_line(call: Part) -> Text:
    """One model call: reserved, then charged."""
    words = line((call["model"], "name"), f" to {call['purpose']}: ")
    words.append_text(line(f"reserved {call['prompt_tokens']:,} + {call['completion_cap']:,} tokens"))
    reply = call["reply"]
    if reply is None:
        return words.append_text(line((", no reply recorded", "warn"), *_seq(call["seq"])))
    charged = f", charged {reply['charged_tokens']:,}"
    if reply["charged_usd"]:
        charged += f" ({dollars(reply['charged_usd'])})"
    words.append_text(line(charged))
    if reply["status"] != "replied":
        words.append_text(line((f", {reply['status']}", "bad"), f" {reply['error'] or ''}"))
    words.append(f"  {duration(call['duration_us'])}", "faint")
    return words.append_text(line(*_seq(call["seq"])))


def result_text(result: Any, full: bool) -> Text:
    """What a tool returned: text as lines, anything else as JSON; cut unless everything was asked for."""
    lines_max = 6
    if isinstance(result, str):
        text = harmless(result).rstrip("\n")
        lines = text.split("\n")
        if full or (len(lines) <= lines_max and len(text) <= 2 * CUT):
            return Text(text)
        kept = "\n".join(lines[:lines_max])[: 2 * CUT]
        return Text(kept).append(f"\n… {len(text) - len(kept):,} more characters, {len(lines):,} lines in all", "faint")
    shown = exact(result)
    if full or len(shown) <= 2 * CUT:
        return Text(shown)
    return Text(shown[: 2 * CUT]).append(f" … {len(shown) - 2 * CUT:,} more characters", "faint")


def _notice(notice: Part) -> tuple[str, Text]:
    if notice["kind"] == "alarm":
        return "alarm", line((notice["code"], "bad"), f": {notice['text'] or ''}", *_seq(notice["seq"]))
    style = "good" if notice["status"] == "delivered" else "bad"
    error = f": {notice['error']}" if notice["error"] else ""
    return "told", line(f"{notice['channel']} ", (notice["status"], style), error, *_seq(notice["seq"]))


def _rows() -> Table:
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(style="faint", width=LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _indented(renderable: RenderableType) -> Padding:
    return Padding(renderable, (0, 0, 0, 2), expand=False)


def _rule(title: Text, right: str) -> Table:
    """A line with a title at its left and a remark at its right."""
    table = Table.grid(expand=True, padding=0)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right", style="faint")
    table.add_row(Text("── ", "faint") + title + Text(" "), Rule(style="faint"), f" {right} ──" if right else "──")
    return table


def _bound(table: Table, name: str, used: float, limit: float | None, shown: str, words: str) -> None:
    if limit is None:
        return
    table.add_row(Text(name, "faint"), bar(used, limit), line(shown, (" of ", "faint"), words.format(limit)))


def _cut(text: str, cut: int) -> str:
    return text if not cut or len(text) <= cut else text[: cut - 1] + "…"


def _seq(seq: int) -> tuple[tuple[str, str], ...]:
    return ((f"  #{seq}", "place"),)


def _sequence_parts(seqs: Sequence[int]) -> tuple[tuple[str, str], ...]:
    runs: list[list[int]] = []
    for seq in sorted(set(seqs)):
        if runs and seq == runs[-1][-1] + 1:
            runs[-1].append(seq)
        else:
            runs.append([seq])
    return ((", ".join(f"#{run[0]}" if len(run) == 1 else f"#{run[0]}–{run[-1]}" for run in runs), "place"),)


def _sequence(seqs: Sequence[int]) -> Text:
    return line(*_sequence_parts(seqs))


def _calls(account: Part) -> list[Part]:
    return [*account["calls_without_step"], *(call for step in account["steps"] for call in step["calls"])]


def _charged(call: Part) -> int:
    reply = call["reply"]
    return int(reply["charged_tokens"]) if reply else int(call["reserved_tokens"])


def exact_lines(text: str) -> Text:
    """A text of several lines, each line whole, with hidden characters written out."""
    return Text(harmless(text.replace("\t", "\\t")))
