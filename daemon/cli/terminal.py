"""What reaches a terminal: a console that lets no control character of untrusted text through, and a few colours."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType

# Everything that moves a cursor, changes colours, reorders or hides text: C0 and C1 controls, DEL, soft hyphen, zero-width
# and bidirectional controls, line and paragraph separators, byte order mark, lone surrogates, tags.
_HIDDEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_MANY_LINES = re.compile(f"[{_HIDDEN}]")
_ONE_LINE = re.compile(rf"[\t\n{_HIDDEN}]")
_BY_NAME = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}

WIDE = 100  # columns from which a table has room for what another page tells, too

THEME = Theme(
    {
        "good": "green",
        "bad": "bold red",
        "ask": "bold yellow",
        "warn": "yellow",
        "faint": "dim",
        "name": "bold",
        "id": "cyan",
        "place": "dim cyan",
        "heading": "bold",
        "command": "bold cyan",
    }
)


def _escaped(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if named := _BY_NAME.get(character):
        return named
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def harmless(text: str) -> str:
    """The text with every control, hidden or reordering character written out as an escape; lines and tabs stay."""
    return _MANY_LINES.sub(_escaped, text)


def one_line(text: str, width_max: int = 0) -> str:
    """The text on one line, harmless, cut with an ellipsis after `width_max` characters (0: never)."""
    cut = text if not width_max or len(text) <= width_max else text[: width_max - 1] + "…"
    return _ONE_LINE.sub(_escaped, cut)


def exact(value: Any) -> str:
    """A JSON value on one line, nothing cut and nothing hidden: what a person reads before saying yes."""
    return one_line(json.dumps(value, ensure_ascii=False, sort_keys=True))


class SafeConsole(Console):
    """A rich console that takes no markup and neutralises whatever text a renderable ends up printing.

    Texts that are known to be untrusted are made harmless before they are laid out, so that columns stay straight; this
    is the net below: no later change to a page can let an escape sequence through.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of the renderable, their text harmless (rich's own controls excepted)."""
        for segment in super().render(renderable, options):
            if segment.control is None and _MANY_LINES.search(segment.text):
                yield Segment(harmless(segment.text), segment.style)
            else:
                yield segment

    def on_broken_pipe(self) -> None:
        """Whoever reads our output has gone. rich would end the process here: a daemon must not end because its viewer did."""
        raise BrokenPipeError


def console_for(stream: IO[str], *, colour: bool = True, width: int | None = None) -> SafeConsole:
    """A console on the stream. Where it is no terminal there are no colours, and lines are wide enough not to be folded
    (`COLUMNS` decides, else 120)."""
    is_terminal = stream.isatty()
    if width is None and not is_terminal and "COLUMNS" not in os.environ:
        width = 120
    return SafeConsole(
        file=stream,
        markup=False,
        emoji=False,
        highlight=False,
        theme=THEME,
        no_color=True if not colour else None,
        force_terminal=is_terminal,
        width=width,
        legacy_windows=False,
    )


def be_printable() -> None:
    """Make standard output and error take any text: what their encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def line(*parts: str | tuple[str, str] | Text) -> Text:
    """One line of output from plain parts and (text, style) pairs, each made harmless; texts made elsewhere stay as they are."""
    assembled = Text()
    for part in parts:
        if isinstance(part, Text):
            assembled.append_text(part)
        elif isinstance(part, tuple):
            assembled.append(one_line(part[0]), style=part[1])
        else:
            assembled.append(one_line(part))
    return assembled


def bar(used: float, limit: float, width: int = 12) -> Text:
    """How much of a limit is used, as a small bar: green to 70 %, yellow to 90 %, red beyond."""
    share = 0.0 if limit <= 0 else max(0.0, used / limit)
    full = min(width, round(share * width))
    if used > 0 and full == 0:
        full = 1
    style = "good" if share <= 0.7 else "warn" if share <= 0.9 else "bad"
    return Text.assemble(("━" * full, style), ("─" * (width - full), "faint"))
