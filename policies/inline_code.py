"""Programs written in awk and sed inside a command: whether all that they do is to transform text.

Neither is a full parser. Each knows the plain part of its language and answers `cannot tell` about the rest, and that is never
automatic."""

from __future__ import annotations

import re

CODE_CHARACTERS_MAX = 4_000

_SED_PLAIN = frozenset("pdqQ=nNgGhHxPDlzF")
_SED_FLAGS = re.compile(r"[gpiIMm0-9]*")
_AWK_BEFORE_REGEX = frozenset("(,{};!~&|\n=+-*%<>?:^")
_AWK_FORBIDDEN = re.compile(r"\bsystem\b|\bclose\b|@|\|&|/inet|\bPROCINFO\b|\bSYMTAB\b|\bFUNCTAB\b")


def sed_is_plain(script: str) -> bool:
    """Whether a sed script only transforms text: no `e`, `w`, `W`, `r`, `R`, no such flag of `s`, nothing unknown."""
    if len(script) > CODE_CHARACTERS_MAX or "\0" in script:
        return False
    return _Sed(script).plain()


class _Sed:
    def __init__(self, script: str) -> None:
        self.script = script
        self.at = 0

    def plain(self) -> bool:
        while self.at < len(self.script):
            if self._peek() in " \t\n;{}":
                self.at += 1
            elif not self._command():
                return False
        return True

    def _peek(self) -> str:
        return self.script[self.at : self.at + 1]

    def _command(self) -> bool:
        if not self._addresses():
            return False
        command = self._peek()
        self.at += 1
        if command in {"{", ""}:
            return command == "{"
        if command in _SED_PLAIN:
            return self._end()
        if command in {"s", "y"}:
            return self._substitution(command)
        if command in {"a", "i", "c"}:  # the text goes on to the end of the line; nothing in it is a command
            return self._text()
        if command in {"b", "t", "T", ":"}:
            return re.compile(r"\s*[A-Za-z0-9_]*").match(self.script, self.at) is not None and self._label()
        return False

    def _addresses(self) -> bool:
        for _ in range(2):
            if self._peek() in {"/", "\\"} and self._peek():
                delimiter = "/"
                if self._peek() == "\\":
                    self.at += 1
                    delimiter = self._peek()
                self.at += 1
                if not delimiter or delimiter in "\n\\" or not self._until(delimiter):
                    return False
                while self._peek() and self._peek() in "IM":
                    self.at += 1
            else:
                found = re.compile(r"(?:[0-9]+(?:~[0-9]+)?|\$|[+~][0-9]+)?").match(self.script, self.at)
                self.at = found.end() if found else self.at
            self._blanks()
            if self._peek() != ",":
                break
            self.at += 1
            self._blanks()
        while self._peek() and self._peek() in "! \t":
            self.at += 1
        return True

    def _blanks(self) -> None:
        while self._peek() and self._peek() in " \t":
            self.at += 1

    def _until(self, delimiter: str) -> bool:
        """Go behind the next `delimiter` that is neither escaped nor in brackets; False where there is none."""
        in_brackets = False
        while self.at < len(self.script):
            character = self._peek()
            if character == "\\":
                self.at += 1
            elif character == "\n":
                return False
            elif in_brackets and character == "]":
                in_brackets = False
            elif character == "[" and not in_brackets:
                # POSIX reads a delimiter in brackets as text and GNU as the end: where they differ, nothing is plain.
                closing = self.script.find("]", self.at + 2)
                if closing < 0 or delimiter in self.script[self.at : closing]:
                    return False
                in_brackets = True
                self.at += 1
            elif character == delimiter:
                self.at += 1
                return True
            self.at += 1
        return False

    def _substitution(self, command: str) -> bool:
        delimiter = self._peek()
        self.at += 1
        if not delimiter or delimiter in "\n\\" or delimiter.isalnum() or delimiter.isspace():
            return False
        if not self._until(delimiter) or not self._until(delimiter):
            return False
        flags = _SED_FLAGS.match(self.script, self.at)
        if command == "s" and flags:
            self.at = flags.end()
        return self._end()

    def _text(self) -> bool:
        end = self.script.find("\n", self.at)
        line = self.script[self.at : end if end >= 0 else len(self.script)]
        if line.rstrip().endswith("\\"):
            return False
        self.at = end + 1 if end >= 0 else len(self.script)
        return True

    def _label(self) -> bool:
        found = re.compile(r"[ \t]*[A-Za-z0-9_]*").match(self.script, self.at)
        self.at = found.end() if found else self.at
        return self._end()

    def _end(self) -> bool:
        found = re.compile(r"[ \t]*[0-9]*[ \t]*(?=[;}\n]|\Z)").match(self.script, self.at)
        if found is None:
            return False
        self.at = found.end()
        return True


def awk_is_plain(program: str) -> bool:
    """Whether an awk program only reads its input and prints: no `system`, no pipe, no output to files, no extension.

    Strings and regular expressions are skipped as awk's own lexer does; where a `/` could be either, nothing is plain."""
    if len(program) > CODE_CHARACTERS_MAX or "\0" in program or "\\\n" in program or _AWK_FORBIDDEN.search(program):
        return False
    return _Awk(program).plain()


class _Awk:
    """Reads an awk program token by token. `before` is the last significant character, or `a` where a value has ended."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.at = 0
        self.depth = 0
        self.printing = False
        self.before = "\n"

    def plain(self) -> bool:
        while self.at < len(self.program):
            character = self.program[self.at]
            if character == "#":
                end = self.program.find("\n", self.at)
                self.at = end if end >= 0 else len(self.program)
            elif character == '"' or (character == "/" and self.before != "a"):
                if not self._literal(character):
                    return False
            elif character.isalnum() or character in "_$.":
                self._word()
            elif not self._mark(character):
                return False
        return True

    def _literal(self, delimiter: str) -> bool:
        end = _closing(self.program, self.at)
        if end < 0 or (delimiter == "/" and self.before not in _AWK_BEFORE_REGEX):
            return False
        self.at, self.before = end + 1, "a"
        return True

    def _word(self) -> None:
        found = re.compile(r"[\w$.]+").match(self.program, self.at)
        assert found is not None
        self.printing = self.printing or found[0] in {"print", "printf"}
        self.before = "\n" if found[0] in {"print", "printf", "return", "in", "getline"} else "a"
        self.at = found.end()

    def _mark(self, character: str) -> bool:
        """Brackets, separators and operators. A single `|` runs something; so does `>` in a print statement write."""
        pair = self.program[self.at : self.at + 2]
        self.at += 1
        if character == "|":
            self.at += 1
            self.before = "|"
            return pair == "||"
        if pair in {"++", "--"}:
            self.at += 1
            return self.program[self.at :].lstrip()[:1] != "/"
        if character == ">" and self.printing and self.depth <= 0:
            return False
        self.depth += (character == "(") - (character == ")")
        if character in "{;}" or (character == "\n" and self.depth <= 0):
            self.printing = False
        if not character.isspace() or character == "\n":
            self.before = "a" if character in ")]" else "(" if character == "[" else character
        return True


def _closing(program: str, start: int) -> int:
    """Where the string or regular expression that opens at `start` closes, on the same line; -1 where it does not. A quote
    inside a regular expression is refused: it could be the lexer's view that is wrong."""
    delimiter = program[start]
    position = start + 1
    while position < len(program):
        character = program[position]
        if character == "\\":
            position += 2
            continue
        if character == "\n" or (delimiter == "/" and character == '"'):
            return -1
        if delimiter == "/" and character == "[":
            closing = program.find("]", position + 2)
            if closing < 0 or any(one in program[position:closing] for one in '/"\n'):
                return -1
            position = closing
        elif character == delimiter:
            return position
        position += 1
    return -1
