"""How a session's page is laid out: headings, rows, bounds as bars, model calls, contexts in brief, sequence numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.page_parts import CUT
from perdure.daemon.cli.terminal import bar, line
from perdure.daemon.cli.words import count, dollars, duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from perdure.daemon.cli.account import Part

LABEL = 10


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
        yield name, line(f"{count(len(items), 'item')}, {tokens:,} tokens", (f"  {cut_text(detail, cut)}", "faint"))
    left_out = context["left_out"]
    if left_out:
        tokens = sum(int(item.get("tokens", 0)) for item in left_out)
        best = left_out[0]
        words = f"  first: {best.get('kind')} {best.get('id')}, {best.get('why')}"
        yield "left out", line(f"{count(len(left_out), 'item')}, {tokens:,} tokens", (cut_text(words, cut), "faint"))


def call_line(call: Part) -> Text:
    """One model call: reserved, then charged."""
    words = line((call["model"], "name"), f" to {call['purpose']}: ")
    words.append_text(line(f"reserved {call['prompt_tokens']:,} + {call['completion_cap']:,} tokens"))
    reply = call["reply"]
    if reply is None:
        return words.append_text(line((", no reply recorded", "warn"), *seq_mark(call["seq"])))
    charged = f", charged {reply['charged_tokens']:,}"
    if reply["charged_usd"]:
        charged += f" ({dollars(reply['charged_usd'])})"
    words.append_text(line(charged))
    if reply["status"] != "replied":
        words.append_text(line((f", {reply['status']}", "bad"), f" {reply['error'] or ''}"))
    words.append(f"  {duration(call['duration_us'])}", "faint")
    return words.append_text(line(*seq_mark(call["seq"])))


def notice_row(notice: Part) -> tuple[str, Text]:
    """A notification or alarm as label and words."""
    if notice["kind"] == "alarm":
        return "alarm", line((notice["code"], "bad"), f": {notice['text'] or ''}", *seq_mark(notice["seq"]))
    style = "good" if notice["status"] == "delivered" else "bad"
    error = f": {notice['error']}" if notice["error"] else ""
    return "told", line(f"{notice['channel']} ", (notice["status"], style), error, *seq_mark(notice["seq"]))


def rows_table() -> Table:
    """A table of labels and what they say."""
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(style="faint", width=LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def indented(renderable: RenderableType) -> Padding:
    """A part of the page, set in from its heading."""
    return Padding(renderable, (0, 0, 0, 2), expand=False)


def rule_line(title: Text, right: str) -> Table:
    """A line with a title at its left and a remark at its right."""
    table = Table.grid(expand=True, padding=0)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=1)
    table.add_column(no_wrap=True, justify="right", style="faint")
    table.add_row(Text("── ", "faint") + title + Text(" "), Rule(style="faint"), f" {right} ──" if right else "──")
    return table


def add_bound(table: Table, name: str, used: float, limit: float | None, shown: str, words: str) -> None:
    """One bound as a row: name, bar, used and limit; nothing where there is no limit."""
    if limit is None:
        return
    table.add_row(Text(name, "faint"), bar(used, limit), line(shown, (" of ", "faint"), words.format(limit)))


def cut_text(text: str, cut: int) -> str:
    """The text, cut with an ellipsis after so many characters (0: never)."""
    return text if not cut or len(text) <= cut else text[: cut - 1] + "…"


def seq_mark(seq: int) -> tuple[tuple[str, str], ...]:
    """A sequence number to follow into the ledger."""
    return ((f"  #{seq}", "place"),)


def sequence_marks(seqs: Sequence[int]) -> tuple[tuple[str, str], ...]:
    """Several sequence numbers, neighbours as ranges."""
    runs: list[list[int]] = []
    for seq in sorted(set(seqs)):
        if runs and seq == runs[-1][-1] + 1:
            runs[-1].append(seq)
        else:
            runs.append([seq])
    return ((", ".join(f"#{run[0]}" if len(run) == 1 else f"#{run[0]}–{run[-1]}" for run in runs), "place"),)


def sequence_text(seqs: Sequence[int]) -> Text:
    """Several sequence numbers as a text of their own."""
    return line(*sequence_marks(seqs))


def all_calls(account: Part) -> list[Part]:
    """Every model call of the session."""
    return [*account["calls_without_step"], *(call for step in account["steps"] for call in step["calls"])]


def charged_tokens(call: Part) -> int:
    """What a call cost; its reservation while no reply is recorded."""
    reply = call["reply"]
    return int(reply["charged_tokens"]) if reply else int(call["reserved_tokens"])
