"""Untrusted text in the ledger must not reach a terminal as anything but text: no escape sequence, no markup, no disguise."""

from __future__ import annotations

import io
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.live import LiveView
from perdure.daemon.cli.terminal import console_for, exact, harmless, line, one_line
from perdure.state.reading import LedgerReader

HOSTILE = (
    "\x1b[2J\x1b[1;31mowned\x1b[0m",
    "\x1b]0;title\x07\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x9b31mred",
    "one\rtwo",
    "a\x08b\x7f",
    "safe\u202etxt.exe",
    "zero\u200bwidth\ufeff",
    "line\u2028break",
    "tag\U000e0041",
    "[bold red]markup[/] :skull: [link=http://evil]x[/link]",
    "\ud800 lone",
)
# What may be in output that goes to no terminal: printable text and line ends. (Rich's own colours come only on terminals.)
FORBIDDEN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e0fff]"
)


def is_clean(output: str) -> bool:
    return FORBIDDEN.search(output) is None


COMMANDS = (
    ("ledger", "show"),
    ("ledger", "show", "--full"),
    ("ledger", "tail"),
    ("ledger", "search", "block_ip"),
    ("inbox",),
    ("inbox", "show", "Q0EST1"),
    ("status",),
    ("context", "show"),
    ("context", "show", "--text"),
    ("schedule", "show"),
    ("session", "list"),
)


@pytest.fixture(params=HOSTILE, ids=lambda text: ascii(text)[:24])
def hostile(request, empty, story):
    """A ledger in which arguments, names, words of the planner and of the tools are hostile."""
    text = request.param
    encodable = text.encode("utf-8", "replace").decode()  # the ledger holds UTF-8
    empty.write(story.until_the_question({"ip": encodable, "note": encodable}, says=encodable))
    return empty, encodable


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_lets_a_control_character_through(hostile, command):
    place, _ = hostile
    result = place.call(*command)
    assert result.exit_code == 0, result.output
    assert is_clean(result.stdout)
    assert is_clean(result.stderr)


def test_markup_is_shown_and_not_obeyed(empty, story):
    empty.write(story.until_the_question({"ip": "[bold red]x[/bold red] :skull:"}))
    for command in (("inbox", "show", "Q0EST1"), ("ledger", "show"), ("inbox",)):
        assert "[bold red]x[/bold red] :skull:" in empty.text(*command)


def test_json_is_plain_ascii_and_loses_nothing(hostile):
    place, text = hostile
    result = place.call("inbox", "show", "Q0EST1", "--json")
    assert result.stdout.isascii()
    assert is_clean(result.stdout)
    import json

    assert json.loads(result.stdout)["question"]["args"]["ip"] == text


def test_live_view_lets_no_control_character_through(hostile):
    place, _ = hostile
    out = io.StringIO()
    with LedgerReader.open(place.state / "ledger.db") as reader:
        view = LiveView(console_for(out, colour=False), payload=reader.payload)
        for event in reader.events():
            view((event,))
        view.close()
    assert "block_ip" in out.getvalue()
    assert is_clean(out.getvalue())


def test_errors_are_clean_too(parked):
    result = parked.call("ledger", "show", "\x1b[31mno\x07such")
    assert result.exit_code == 1
    assert is_clean(result.stderr)
    assert is_clean(result.stdout)


@given(st.text())
def test_harmless_text_has_nothing_hidden_and_keeps_what_is_visible(text):
    shown = harmless(text)
    assert FORBIDDEN.search(shown.replace("\t", "")) is None
    assert harmless(shown) == shown
    visible = string.ascii_letters + string.digits
    assert [c for c in text if c in visible] == [
        c for c in re.sub(r"\\(x..|u....|U........|r)", "", shown) if c in visible
    ] or "\\" in text
    assert "\n" not in one_line(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_exact_values_stay_on_one_clean_line(value):
    assert is_clean(exact(value))


@given(st.text())
def test_the_console_is_a_net_below_every_renderable(text):
    out = io.StringIO()
    console = console_for(out, colour=False, width=60)
    table = Table()
    table.add_column(Text(text))
    table.add_row(Text(text))
    console.print(Panel(table, title=Text(text)))
    console.print(text)
    console.print(line(text, (text, "bad")))
    assert is_clean(out.getvalue())
