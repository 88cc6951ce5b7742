"""Parts that several pages share: statuses, decisions, arguments with their provenance, rules with their places, results."""

from __future__ import annotations

import pwd
import re
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.terminal import exact, harmless, one_line
from perdure.daemon.cli.words import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

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
CUT_VALUE = 160  # one argument, or one field of a result
FIELDS_MAX = 8


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


def sources(names: Sequence[str] | None) -> Text:
    """Provenance tags of one argument; None where others have them: the tool filled in its default."""
    if names is None:
        return Text("tool's default", "faint")
    tags = Text()
    for name in names:
        if tags:
            tags.append(" + ", "faint")
        style = "good" if name.startswith("trusted:") else SOURCE_STYLE.get(name, "ask")
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
        first = value.strip("\n").split("\n", 1)[0]
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


def beyond_citation(reason: str, rules: Sequence[Mapping[str, Any]]) -> str:
    """The reason where it says more than which rules counted (those are listed with their places anyway)."""
    rest = reason
    for rule in rules:
        rest = rest.replace(f"'{rule['name']}' ({rule['file']}:{rule['line']})", "")
    return "" if re.fullmatch(r"(allowed|escalated|denied) by[ ,]*(and)?[ ,]*", rest) else reason


def result_text(result: Any, full: bool) -> RenderableType:
    """What a tool returned: text as lines, an object a field a line; cut unless everything was asked for."""
    if isinstance(result, str):
        return _lines_text(result, full)
    if isinstance(result, dict) and len(result) > 1:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in list(result.items())[: None if full else FIELDS_MAX]:
            table.add_row(Text(one_line(name), "faint"), argument_text(value, 0 if full else CUT_VALUE))
        if not full and len(result) > FIELDS_MAX:
            table.add_row("", Text(f"… {count(len(result) - FIELDS_MAX, 'more field')}", "faint"))
        return table
    return argument_text(result, 0 if full else 2 * CUT)


def _lines_text(result: str, full: bool) -> Text:
    lines_max = 6
    text = harmless(result).rstrip("\n")
    lines = text.split("\n")
    if full or (len(lines) <= lines_max and len(text) <= 2 * CUT):
        return Text(text)
    kept = "\n".join(lines[:lines_max])[: 2 * CUT]
    return Text(kept).append(f"\n… {len(text) - len(kept):,} more characters, {len(lines):,} lines in all", "faint")


def condition_words(condition: Any, kind: str) -> str:
    """A postcondition as a person wrote it: `file_exists path="reports/a.md"`."""
    if not isinstance(condition, dict):
        return kind if condition is None else f"{kind} {exact(condition)}"
    parts = []
    for name, value in condition.items():
        inner = [f"{key}={exact(held)}" for key, held in value.items()] if isinstance(value, dict) else [exact(value)]
        parts.append(" ".join([name, *inner]))
    return ", ".join(parts)


def exact_lines(text: str) -> Text:
    """A text of several lines, each line whole, with hidden characters written out."""
    return Text(harmless(text.replace("\t", "\\t")))
