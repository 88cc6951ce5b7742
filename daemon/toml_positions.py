"""Where each key of a TOML document stands: `tomllib` gives values only, and an error message needs line and column."""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

_BARE_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_BLANK = " \t"
_VALUE_ENDS = ",]}#\r\n"


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column (both from 1) of a key and of its value; for an element of an array both are the value's."""

    key: tuple[int, int]
    value: tuple[int, int]


def positions(text: str) -> Mapping[KeyPath, Place]:
    """The place of every key and array element of `text`, which `tomllib` must already have accepted."""
    return _Scanner(text).scan()


class _Scanner:
    """A walk over a document known to be valid, so that it only has to know where things end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.places: dict[KeyPath, Place] = {}
        self.tables_in_array: dict[KeyPath, int] = {}
        self.line_starts = [0, *(index + 1 for index, character in enumerate(text) if character == "\n")]

    def scan(self) -> dict[KeyPath, Place]:
        table: KeyPath = ()
        while self._skip_blank_lines():
            if self.text[self.at] == "[":
                table = self._table_header()
            else:
                self._key_and_value(table)
        return self.places

    def _place(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def _skip(self, characters: str) -> None:
        while self.at < len(self.text) and self.text[self.at] in characters:
            self.at += 1

    def _skip_blank_lines(self) -> bool:
        """Go on to the next thing that is neither white space nor comment; False at the end of the text."""
        while True:
            self._skip(" \t\r\n")
            if self.at >= len(self.text):
                return False
            if self.text[self.at] != "#":
                return True
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end

    def _table_header(self) -> KeyPath:
        in_array = self.text.startswith("[[", self.at)
        self.at += 2 if in_array else 1
        self._skip(_BLANK)
        start = self.at
        *parents, last = self._dotted_key()
        self._skip(_BLANK)
        self.at += 2 if in_array else 1
        path = (*self._inside_arrays((), parents), last)
        if in_array:
            index = self.tables_in_array.get(path, 0)
            self.tables_in_array[path] = index + 1
            self._record(path, start, start)
            path = (*path, index)
        elif path in self.tables_in_array:
            path = (*path, self.tables_in_array[path] - 1)
        self._record(path, start, start)
        return path

    def _inside_arrays(self, path: KeyPath, parts: list[str]) -> KeyPath:
        """`parts` below `path`, going into the newest element wherever an array of tables is on the way."""
        for part in parts:
            path = (*path, part)
            if path in self.tables_in_array:
                path = (*path, self.tables_in_array[path] - 1)
        return path

    def _record(self, path: KeyPath, key: int, value: int) -> None:
        self.places.setdefault(path, Place(self._place(key), self._place(value)))

    def _key_and_value(self, table: KeyPath) -> None:
        start = self.at
        parts = self._dotted_key()
        self._skip(_BLANK)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        for depth in range(1, len(parts)):
            self._record((*table, *parts[:depth]), start, start)
        path = (*table, *parts)
        self._record(path, start, self.at)
        self._value(path)

    def _dotted_key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_BLANK)
            start = self.at
            if self.text[self.at] in "\"'":
                self._string()
                parts.append(str(tomllib.loads(f"key = {self.text[start : self.at]}")["key"]))
            else:
                while self.at < len(self.text) and self.text[self.at] in _BARE_KEY:
                    self.at += 1
                parts.append(self.text[start : self.at])
            self._skip(_BLANK)
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in _VALUE_ENDS:
                self.at += 1

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self._skip_blank_lines() and self.text[self.at] != "]":
            self._record((*path, index), self.at, self.at)
            self._value((*path, index))
            index += 1
            self._skip_blank_lines()
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._skip_blank_lines() and self.text[self.at] != "}":
            self._key_and_value(path)
            self._skip_blank_lines()
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def _string(self) -> None:
        quote = self.text[self.at]
        escapes = quote == '"'
        if self.text.startswith(quote * 3, self.at):
            self.at += 3
            while not self.text.startswith(quote * 3, self.at):
                self.at += 2 if escapes and self.text[self.at] == "\\" else 1
            while self.text.startswith(quote, self.at):  # up to two quotes may stand before the closing three
                self.at += 1
            return
        self.at += 1
        while self.text[self.at] != quote:
            self.at += 2 if escapes and self.text[self.at] == "\\" else 1
        self.at += 1
