"""YAML as configuration files may use it: a small, positioned tree with no tags, anchors, aliases, duplicates or guesses.

PyYAML's C parser delivers the events; the tree is built here, because `safe_load` lets duplicate keys through, reads `NO` and
`on` as booleans, and forgets where anything stood."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

import yaml

from perdure.errors import Problem

BYTES_MAX = 1_000_000
NODES_MAX = 200_000
DEPTH_MAX = 32
PROBLEMS_MAX = 100  # more would only hide the first ones

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,39})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18}|[0-9]{1,18})(?:[eE][-+]?[0-9]{1,3})?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a file; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. Only plain scalars become None, booleans or numbers; `NO`, `on`, dates and `0755` are text."""

    value: None | bool | int | float | str
    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Listing:
    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping. `keys` gives each key's place, `entries` its value."""

    entries: dict[str, Node]
    keys: dict[str, Place]
    place: Place


Node: TypeAlias = Scalar | Listing | Table


def plain(node: Node) -> object:
    """The node as plain Python data, without places."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Listing):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.entries.items()}


def words_for(node: Node) -> str:
    """What a person would call the node, for error messages: bounded."""
    if isinstance(node, Scalar):
        if node.value is None:
            return "nothing"
        kind = {bool: "the boolean ", int: "the number ", float: "the number "}.get(type(node.value), "")
        return f"{kind}{short(node.text)}" if kind else f"the text {short(node.text)!r}"
    if isinstance(node, Listing):
        return f"a list of {len(node.items)}" if node.items else "an empty list"
    return "a mapping" if node.entries else "an empty mapping"


def short(text: str, length_max: int = 60) -> str:
    """`text`, cut for a message."""
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean …?` with the nearest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@dataclass(slots=True)
class Complaints:
    """Collects the problems of one file, each with its line and a caret."""

    file: str
    lines: Sequence[str]
    problems: list[Problem] = field(default_factory=list)

    def add(self, place: Place, found: str, expected: str) -> None:
        """Record one problem at `place`."""
        if len(self.problems) < PROBLEMS_MAX:
            line = self.lines[place.line - 1] if 0 < place.line <= len(self.lines) else ""
            if len(line) > 200:  # a caret under a line of thousands of characters helps nobody
                line = ""
            self.problems.append(Problem(self.file, place.line, place.column, found, expected, line))


def read_document(content: bytes, file: str) -> tuple[Node | None, Complaints]:
    """The tree of a YAML file, and what is wrong with it. None where nothing could be read."""
    complaints = Complaints(file, [])
    if len(content) > BYTES_MAX:
        complaints.add(
            Place(0, 0), f"more than {BYTES_MAX:,} bytes", f"at most {BYTES_MAX:,} bytes; split the file by purpose"
        )
        return None, complaints
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        complaints.add(
            Place(line, column), f"the byte 0x{content[error.start]:02x}, which is not UTF-8", "text in UTF-8"
        )
        return None, complaints
    complaints.lines = text.splitlines()
    try:
        return _Builder(complaints).build(text), complaints
    except yaml.reader.ReaderError as error:
        where = error.position if isinstance(error.position, int) else 0
        before = text[:where]
        place = Place(before.count("\n") + 1, where - (before.rfind("\n") + 1) + 1)
        complaints.add(place, f"the character U+{_code(error.character):04X}", "printable text")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(0, 0)
        begun = f" that begins in line {error.context_mark.line + 1}" if error.context and error.context_mark else ""
        context = f" {error.context}{begun}" if error.context else ""
        found = f"{error.problem}{context}".removeprefix("found ").replace("did not find expected", "no", 1)
        if (
            0 < place.line <= len(complaints.lines)
            and complaints.lines[place.line - 1][place.column - 1 : place.column] == "\t"
        ):
            found = "a tab"
        complaints.add(place, found, "YAML (indented by spaces; quote text that holds `: ` or starts with a sign)")
    except yaml.YAMLError as error:
        complaints.add(Place(0, 0), str(error), "YAML")
    return None, complaints


def _code(character: object) -> int:
    return character if isinstance(character, int) else ord(str(character)[:1] or "\0")


class _Stop(Exception):
    pass


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen. `key` is the pending key of a mapping."""

    place: Place
    mapping: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Place] = field(default_factory=dict)
    key: str | None = None
    expects_value: bool = False


class _Builder:
    """Builds the tree from events with a stack of its own, so that depth is bounded by us and not by recursion."""

    def __init__(self, complaints: Complaints) -> None:
        self.complaints = complaints
        self.stack: list[_Open] = []
        self.root: Node | None = None
        self.nodes = 0
        self.documents = 0

    def build(self, text: str) -> Node | None:
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                self._take(event)
        except _Stop:
            return None
        if self.root is None and not self.complaints.problems:
            self.complaints.add(Place(1, 1), "an empty file", "`version: 1` and `rules:`")
        return self.root

    def _take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        place = Place(mark.line + 1, mark.column + 1) if mark is not None else Place(0, 0)
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self._stop(place, "a second document (`---`)", "one document in a file")
        elif isinstance(event, yaml.AliasEvent):
            self._stop(place, f"the alias *{event.anchor}", "the value itself: no anchors and aliases")
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, place)
        elif isinstance(event, yaml.CollectionEndEvent):
            done = self.stack.pop()
            self._put(
                Table(done.entries, done.keys, done.place) if done.mapping else Listing(tuple(done.items), done.place)
            )

    def _node(self, event: yaml.NodeEvent, place: Place) -> None:
        self.nodes += 1
        if self.nodes > NODES_MAX:
            self._stop(place, f"more than {NODES_MAX:,} values", "a smaller file; split it by purpose")
        if event.anchor is not None:
            self._stop(place, f"the anchor &{event.anchor}", "no anchors: everything must be readable where it stands")
        tag = getattr(event, "tag", None)
        if tag is not None:
            hint = "no tags; text that starts with ! in quotes"
            self.complaints.add(place, f"the tag {short(str(tag))}", hint)
        if isinstance(event, yaml.ScalarEvent):
            is_plain = not event.style and event.implicit[0]
            value = None if tag is not None else _resolve(event.value) if is_plain else event.value
            self._put(Scalar(value, event.value, place))
        else:
            if len(self.stack) >= DEPTH_MAX:
                self._stop(place, f"more than {DEPTH_MAX} levels", "a flatter document")
            if self._awaits_key():
                self._stop(place, "a list or mapping as a key", "a plain name")
            self.stack.append(_Open(place, isinstance(event, yaml.MappingStartEvent)))

    def _awaits_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].mapping and not self.stack[-1].expects_value

    def _put(self, node: Node) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if not top.mapping:
            top.items.append(node)
        elif not top.expects_value:
            self._key(top, node)
        else:
            if top.key is not None:
                top.entries[top.key] = node
            top.key, top.expects_value = None, False

    def _key(self, top: _Open, node: Node) -> None:
        top.expects_value = True
        assert isinstance(node, Scalar)
        name = node.text
        if name in top.keys:
            first = top.keys[name]
            self.complaints.add(
                node.place, f"the key {short(name)!r} a second time", f"it once (first in line {first.line})"
            )
            return
        top.key = name
        top.keys[name] = node.place

    def _stop(self, place: Place, found: str, expected: str) -> None:
        self.complaints.add(place, found, expected)
        raise _Stop


def _resolve(text: str) -> None | bool | int | float | str:
    if text in {"", "~", "null"}:
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not re.fullmatch(r"[-+]?0[0-9]+", text):
        return float(text)
    return text
