"""The live view of `perdure run`: ledger events as lines that a person likes to read while the daemon works.

One line for each step when it is over, questions set off from the rest; on a terminal, a line at the bottom for each session
that runs now. Elsewhere the same lines, plain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.event_lines import SLOT_STYLE
from perdure.daemon.cli.page_parts import OUTCOME, STATUS, condition_words, status_text
from perdure.daemon.cli.terminal import bar, exact, line, one_line
from perdure.daemon.cli.words import clock_time, count, dollars, duration, from_now, moment, short, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import tzinfo

    from rich.console import Console

    from perdure.state.events import JSON, Event

ARGS_WIDTH = 56
# Arguments that say most about what a call does; they are shown first, and long texts not at all.
TELLING = ("path", "source", "target", "command", "url", "ip", "pattern", "query", "title", "subject")


@dataclass(slots=True)
class _Step:
    number: int
    tool: str
    args: str
    effect: str = ""
    decision: str = ""
    rules: str = ""
    reason: str = ""
    message: tuple[str, str] | None = None  # what `notify` tells


@dataclass(slots=True)
class _Running:
    task: str
    session: str
    steps_max: float
    bounds: Mapping[str, Any]
    dry_run: bool = False
    steps: dict[str, _Step] = field(default_factory=dict)
    doing: str = "beginning"
    number: int = 0


class LiveView:
    """A callback for ledger events. `payload` reads an event's payload (None: arguments are not shown); `command` is how to
    call Perdure for this workspace from here. Close it before printing anything else to the console."""

    def __init__(
        self,
        console: Console,
        *,
        zone: tzinfo | None = None,
        payload: Callable[[int], JSON] | None = None,
        command: str = "perdure",
    ) -> None:
        self._console = console
        self._zone = zone
        self._payload = payload or (lambda _: None)
        self._command = command
        self._running: dict[str, _Running] = {}
        self._live: Live | None = None
        self._gone = False

    def __call__(self, events: tuple[Event, ...]) -> None:
        """Show what these events say. A terminal that went away ends the view, never the daemon."""
        if self._gone:
            return
        try:
            for event in events:
                handle = getattr(self, "_" + event.type.replace(".", "_"), None)
                if handle is not None:
                    handle(event, event.body)
            self._show_running()
        except (OSError, ValueError):
            self._gone = True

    def close(self) -> None:
        """Take the lines at the bottom away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    # -- lines ----------------------------------------------------------------------------------------------------------

    def _print(self, event: Event, *parts: Any, session: str | None = None, task: str | None = None) -> None:
        text = line((clock_time(event.at, self._zone) + "  ", "faint"))
        if task is not None:
            text.append_text(line((task, "name"), " "))
        if session is not None:
            text.append_text(line((short(session), "id"), "  "))
        text.append_text(line(*parts))
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _print_in(self, event: Event, *parts: Any) -> None:
        self._print(event, *parts, session=event.body["session"], task=event.body["task"])

    def _show_running(self) -> None:
        if not self._console.is_terminal:
            return
        if not self._running:
            self.close()
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8)
            self._live.start()
        table = Table.grid(padding=(0, 1))
        for running in self._running.values():
            words = line((running.task, "name"), " ", (short(running.session), "id"), f"  {running.doing}  ")
            if running.steps_max:
                words.append_text(bar(running.number, running.steps_max, 10))
                words.append(f" {running.number} of {running.steps_max:g} steps", "faint")
            table.add_row(Spinner("dots", style="id"), words)
        self._live.update(table)

    # -- one method for each type of event that is shown, named after it ------------------------------------------------------

    def _daemon_started(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(event, ("● daemon started", "good"), (f"  pid {body['pid']}, version {body['version']}", "faint"))

    def _daemon_stopped(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(event, ("○ daemon stopped", "warn"), f": {body['reason']}")

    def _configuration_loaded(self, event: Event, body: Mapping[str, Any]) -> None:
        if body["kind"] == "policies":
            self._print(event, ("policies in force", "good"), (f": {', '.join(body['files'])}", "faint"))

    def _configuration_rejected(self, event: Event, body: Mapping[str, Any]) -> None:
        words = f": {count(body['problems'], 'problem')}; the last good version stays in force. "
        self._print(event, ("✗ broken edit", "bad"), words, (f"{self._command} check", "command"))

    def _task_loaded(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(event, ("task in force", "good"), ": ", (body["task"], "name"))

    def _task_removed(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(event, ("task removed", "warn"), ": ", (body["task"], "name"))

    def _paused(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(
            event, ("■ paused", "warn"), f": {body.get('task') or 'everything'} by {body['by']}: {body['reason']}"
        )

    def _resumed(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(event, ("▶ resumed", "good"), f": {body.get('task') or 'everything'} by {body['by']}")

    def _alarm_raised(self, event: Event, body: Mapping[str, Any]) -> None:
        payload = self._payload(event.seq)
        text = str(payload.get("text", "")) if isinstance(payload, dict) else ""
        first, *rest = text.splitlines() or [""]
        self._print(
            event,
            (f"‼ {body['code']}", "bad"),
            f": {shorten(first)}",
            (f" (+ {count(len(rest), 'line')})" if rest else "", "faint"),
        )

    def _notification_sent(self, event: Event, body: Mapping[str, Any]) -> None:
        if body["status"] != "delivered":
            self._print(
                event,
                (f"✗ nobody was reached over {body['channel']}", "bad"),
                f" about {short(body['about'])}: {body.get('error') or ''}",
            )

    def _slot_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        if body.get("session") is not None:
            return  # the session's own line says it
        many = f" × {body['count']:,}" if body.get("count", 1) > 1 else ""
        self._print(event, (body["outcome"], SLOT_STYLE.get(body["outcome"], "warn")), many,
                    (f" {shorten(body['rule'])}" if body.get("rule") else "", "faint"), task=body["task"])  # fmt: skip

    def _session_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        bounds = body["bounds"]
        self._running[body["session"]] = _Running(
            body["task"], body["session"], bounds.get("steps") or 0, bounds, dry_run=bool(body.get("dry_run"))
        )
        words = f"{body['planner']}{' ' + body['model'] if body.get('model') else ''}"
        if body.get("resumes"):
            words += f", resumes {short(body['resumes'])}"
        if body.get("escalation"):
            words += f" after the answer to {short(body['escalation'])}"
        if body.get("dry_run"):
            words += ", dry run"
        slot_kind = str(body["slot"]).split("/")[1] if str(body["slot"]).count("/") > 1 else "slot"
        self._print_in(event, ("▶ ", "id"), (slot_kind, "heading"), (f"  {words}", "faint"))

    def _context_assembled(self, event: Event, body: Mapping[str, Any]) -> None:
        words = line(("  sees ", "faint"), (f"{body['tokens']:,} of {body['budget']:,} tokens ", "faint"))
        words.append_text(bar(body["tokens"], body["budget"], 10))
        self._print_in(event, words)

    def _compaction_failed(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(
            event, ("✗ compaction failed", "bad"), f": {body['reason']}", session=body.get("session"), task=body["task"]
        )

    def _model_requested(self, event: Event, body: Mapping[str, Any]) -> None:
        del event
        self._doing(body, f"asks {body['model']}")

    def _model_replied(self, event: Event, body: Mapping[str, Any]) -> None:
        if body["status"] != "replied":
            self._print_in(event, ("  ✗ model call ", "bad"), (body["status"], "bad"), f" {body.get('error') or ''}",
                           (f", charged {body['charged_tokens']:,} tokens", "faint"))  # fmt: skip

    def _step_rejected(self, event: Event, body: Mapping[str, Any]) -> None:
        payload = self._payload(event.seq)
        detail = str(payload.get("detail") or "") if isinstance(payload, dict) else ""
        self._print_in(
            event,
            (f"{body['step']:>2} ", "faint"),
            ("✗ no action", "bad"),
            f": {body['reason']}",
            (f" {detail[:200]}", "faint"),
        )

    def _action_proposed(self, event: Event, body: Mapping[str, Any]) -> None:
        running = self._running.get(body["session"])
        if running is None:
            return
        payload = self._payload(event.seq)
        args = payload.get("args") if isinstance(payload, dict) else None
        step = _Step(
            body["step"],
            body["tool"],
            brief_arguments(args if isinstance(args, dict) else {}, self._args_width()),
            body["effect"],
        )
        if body["tool"] == "notify" and isinstance(args, dict):
            step.message = (str(args.get("title", "")), str(args.get("text", "")))
        running.steps[body["action"]] = step
        running.number = max(running.number, body["step"])

    def _action_decided(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._step(body)
        step.decision, step.reason = body["decision"], shorten(body["reason"])
        names = [str(rule["name"]) for rule in body["rules"] if rule["decide"] == body["decision"]] or [
            str(r["name"]) for r in body["rules"]
        ]
        step.rules = shorten(", ".join(names))
        if body["decision"] == "deny":
            self._print_in(event, *self._what(step), ("✗ denied", "bad"), _by(step))
        elif (running := self._running.get(body["session"])) is not None and running.dry_run:
            if body["decision"] == "escalate":
                self._print_in(event, *self._what(step), ("? would ask a person", "ask"), _by(step))
            elif step.effect != "read":  # reads are done, and shown when they have ended
                self._print_in(event, *self._what(step), (step.decision, "good"), _by(step), ("  not done", "warn"))

    def _action_intended(self, event: Event, body: Mapping[str, Any]) -> None:
        del event
        step = self._step(body)
        if body.get("approval"):
            step.decision, step.rules, step.reason = "approved", "", f"by the answer to {short(body['approval'])}"
        step.tool = body["tool"]
        self._doing(body, step.tool)

    def _action_ended(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._step(body)
        sign, style = OUTCOME.get(body["status"], (str(body["status"]), ""))
        parts = [
            *self._what(step),
            (step.decision or "done", "good"),
            _by(step),
            (f"  {sign} ", style),
            (duration(body["duration_us"]), "faint"),
        ]
        if body.get("settles"):
            parts.append(("  settled later", "warn"))
        self._print_in(event, *parts)
        if body["status"] != "succeeded":
            payload = self._payload(event.seq)
            error = (payload.get("error") if isinstance(payload, dict) else None) or body.get("error") or ""
            self._print_in(event, ("     ", ""), (one_line(str(error), 300), "bad"))
        elif step.message is not None:
            title, text = step.message
            self._lines(line(("          ▌ ", "warn"), (title, "warn"), "  ", one_line(text, 300)))
        self._doing(body, "thinks")

    def _action_verified(self, event: Event, body: Mapping[str, Any]) -> None:
        if not body["passed"]:
            self._print_in(
                event, ("   ✗ ", "bad"), f"check by {body['verifier']}: ", ("the effect is not there", "bad")
            )

    def _postcondition_checked(self, event: Event, body: Mapping[str, Any]) -> None:
        payload = self._payload(event.seq)
        condition = payload.get("condition") if isinstance(payload, dict) else None
        sign, style = ("✓", "good") if body["passed"] else ("✗", "bad")
        what = condition_words(condition, body["kind"])
        self._print_in(
            event, (f"   {sign} ", style), ("proven: " if body["passed"] else "not so: ", style), (what, "faint")
        )

    def _escalation_opened(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._step(body)
        name = short(body["escalation"])
        self._print_in(event, *self._what(step), ("? asks a person", "ask"), _by(step))
        expires = f"{from_now(body['expires'], event.at)} ({moment(body['expires'], self._zone, event.at)})"
        mark = ("          ▌ ", "ask")
        self._lines(
            line(mark, ("question ", ""), (name, "id"), (f"  expires {expires}, then {body['on_expiry']}", "faint")),
            line(mark, (f"{self._command} inbox show {name}", "command")),
            line(
                mark,
                (f"{self._command} approve {name}", "command"),
                ("   or   ", "faint"),
                (f"{self._command} deny {name}", "command"),
            ),
        )

    def _escalation_joined(self, event: Event, body: Mapping[str, Any]) -> None:
        step = self._step(body)
        self._print_in(
            event,
            *self._what(step),
            ("? asked before", "ask"),
            ": it is question ",
            (short(body["escalation"]), "id"),
        )

    def _escalation_answered(self, event: Event, body: Mapping[str, Any]) -> None:
        word, style = ("✓ approved", "good") if body["answer"] == "approve" else ("✗ denied", "bad")
        self._print(
            event,
            (word, style),
            ": question ",
            (short(body["escalation"]), "id"),
            (f" by uid {body['uid']}", "faint"),
            task=body["task"],
        )

    def _escalation_expired(self, event: Event, body: Mapping[str, Any]) -> None:
        self._print(
            event,
            ("question expired", "warn"),
            " ",
            (short(body["escalation"]), "id"),
            f": {body['default']}",
            task=body["task"],
        )

    def _session_closed(self, event: Event, body: Mapping[str, Any]) -> None:
        running = self._running.pop(body["session"], None)
        bounds: Mapping[str, Any] = running.bounds if running is not None else {}
        words = status_text(body["status"])
        words.append_text(line(f"  {shorten(body['reason'])}"))
        self._print_in(event, words)
        _, style = STATUS.get(body["status"], ("", ""))
        steps = f"{body['steps']} of {bounds['steps']}" if bounds.get("steps") else f"{body['steps']}"
        used = line(("          ▌ ", style), (f"{steps} steps · {body['tokens']:,}", "faint"))
        used.append(f" of {bounds['tokens']:,} tokens" if bounds.get("tokens") else " tokens", "faint")
        used.append(f" · {dollars(body['cost_usd'])}" if body["cost_usd"] else "", "faint")
        used.append(f" · {duration(body['duration_us'])} · ", "faint")
        used.append(f"{self._command} ledger show {short(body['session'])}", "command")
        self._lines(used)

    # -- parts ----------------------------------------------------------------------------------------------------------

    def _args_width(self) -> int:
        return min(ARGS_WIDTH, max(32, self._console.width - 64)) if self._console.is_terminal else ARGS_WIDTH

    def _lines(self, *texts: Text) -> None:
        for text in texts:
            self._console.print(text, soft_wrap=not self._console.is_terminal)

    def _step(self, body: Mapping[str, Any]) -> _Step:
        """The step of an action; one that an earlier session proposed has only its tool's name here."""
        running = self._running.get(body["session"])
        found = running.steps.get(body["action"]) if running is not None else None
        if found is None:
            found = _Step(0, str(body.get("tool", "")), "")
            if running is not None:
                running.steps[body["action"]] = found
        return found

    def _what(self, step: _Step) -> list[Any]:
        number = f"{step.number:>2} " if step.number else "   "
        return [(number, "faint"), (step.tool, "name"), (f" {step.args}" if step.args else "", ""), "  "]

    def _doing(self, body: Mapping[str, Any], words: str) -> None:
        if running := self._running.get(body["session"]):
            running.doing = words


def _by(step: _Step) -> tuple[str, str]:
    if step.rules and (step.decision == "escalate" or step.rules.startswith("a person ")):
        return (f" ({step.rules})", "faint")
    return (f" by {step.rules}" if step.rules else f" {step.reason}".rstrip(), "faint")


def brief_arguments(args: Mapping[str, Any], width: int = ARGS_WIDTH) -> str:
    """The most telling arguments of a call, short."""
    names = [name for name in TELLING if name in args] + [name for name in args if name not in TELLING]
    parts: list[str] = []
    for name in names:
        value = args[name]
        if isinstance(value, str) and (len(value) > width or "\n" in value):
            shown = f"{name}=({len(value):,} characters)"
        else:
            text = exact(value)
            shown = f"{name}={text}" if len(text) <= width else f"{name}={text[: width - 1]}…"
        if parts and sum(len(part) + 1 for part in parts) + len(shown) > width:
            return " ".join(parts) + " …"
        parts.append(shown)
    return " ".join(parts)
