"""Words of a shell command: what is certain about each before the shell has expanded it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from glob import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

_ANSI = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "e": "\x1b",
    "E": "\x1b",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "?": "?",
}
_BRACES = re.compile(r"\{.*(?:,|\.\.).*\}", re.DOTALL)  # what bash may expand; `{}` and `{a}` stay as they are
_ANSI_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|(.))", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Word:
    """`text` is the word after expansion, or None where that is not certain; then `prefix` is how it certainly begins, and
    `splits` says that it may become several words.

    Of an uncertain word that may name files: `glob` is the pattern that it is, where nothing else expands in it (`*` and `?`;
    what was quoted stands in brackets); `variable` the one whose value it is; `below` the directories that it is found in, where
    it may be a link to elsewhere (`linked`)."""

    text: str | None
    prefix: str = ""
    splits: bool = False
    glob: str | None = None
    variable: str | None = None
    below: tuple[str, ...] = ()
    linked: bool = False

    @property
    def may_be_option(self) -> bool:
        """Whether the program may read this word, or a part of it, as an option."""
        if self.text is not None:
            return self.text.startswith("-") and self.text != "-"
        return self.splits or not self.prefix or self.prefix.startswith("-")


UNCERTAIN = Word(None, "", splits=True)
PIPE = Word(None, "/dev/fd/")  # a process substitution: no file


def literal(text: str) -> Word:
    """A word that nothing will expand."""
    return Word(text, text)


def word_of(node: Node, source: bytes) -> Word:
    """The word that a syntax node stands for."""
    kind = node.type
    if kind == "word":
        return _unquoted(_text(node, source))
    if kind == "number":
        return literal(_text(node, source))
    if kind == "raw_string":
        return literal(_text(node, source)[1:-1])
    if kind == "ansi_c_string":
        decoded = _ansi(_text(node, source)[2:-1])
        return literal(decoded) if decoded is not None else Word(None)
    if kind == "string":
        return _double_quoted(node, source)
    if kind == "concatenation":
        return _concatenated(node, source)
    if kind == "process_substitution":
        return PIPE
    if kind in {"simple_expansion", "expansion"}:
        return Word(None, "", splits=True, variable=_variable(node, source))
    return Word(None, "", splits=kind == "command_substitution")


def _text(node: Node, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "surrogateescape")


def _variable(node: Node, source: bytes) -> str | None:
    """The variable whose value, and nothing else, the expansion is."""
    found = re.fullmatch(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", _text(node, source), re.ASCII)
    return (found[1] or found[2]) if found else None


def _unquoted(text: str) -> Word:
    """A bare word: backslashes quote; globs, braces and a leading tilde expand."""
    if text.startswith("~"):
        plain = re.fullmatch(r"~(?![-\d])[\w./-]*", text, re.ASCII)  # not `~-`, where the shell was before
        return Word(None, "/", glob=text if plain else None)
    out: list[str] = []
    pattern: list[str] = []
    prefix: str | None = None  # how the word begins, once it holds a glob
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
            out.append(text[position : position + 1])
            pattern.append(escape(out[-1]))
        elif character in "*?":
            prefix = "".join(out) if prefix is None else prefix
            pattern.append(character)
        elif character == "[" or (character == "~" and text[position - 1] in ":="):
            return Word(None, "".join(out) if prefix is None else prefix)
        elif character == "{" and _BRACES.match(text, position):
            return Word(None, "".join(out) if prefix is None else prefix, splits=True)
        else:
            out.append(character)
            pattern.append(character)
        position += 1
    return literal("".join(out)) if prefix is None else Word(None, prefix, glob="".join(pattern))


def _double_quoted(node: Node, source: bytes) -> Word:
    """Everything between the quotes; expansions are holes in it. Read from the bytes: the parser drops some blanks."""
    prefix: list[str] = []
    position = node.start_byte + 1
    for child in node.named_children:
        if child.type == "string_content":
            continue
        prefix.append(_double_escapes(source[position : child.start_byte]))
        alone = child.start_byte == node.start_byte + 1 and child.end_byte == node.end_byte - 1
        expands = child.type in {"simple_expansion", "expansion"}
        return Word(None, "".join(prefix), variable=_variable(child, source) if alone and expands else None)
    prefix.append(_double_escapes(source[position : node.end_byte - 1]))
    return literal("".join(prefix))


def _double_escapes(text: bytes) -> str:
    return re.sub(
        r'\\([\\"$`\n])', lambda found: "" if found[1] == "\n" else found[1], text.decode("utf-8", "surrogateescape")
    )


def _concatenated(node: Node, source: bytes) -> Word:
    parts = [word_of(child, source) for child in node.children]
    prefix: list[str] = []
    certain = True
    splits = False
    for part in parts:
        if certain:
            prefix.append(part.text if part.text is not None else part.prefix)
        certain = certain and part.text is not None
        splits = splits or part.splits
    braces = _BRACES.search(_text(node, source))
    if braces:
        return Word(None, "".join(prefix).partition("{")[0], splits=True)
    text = "".join(prefix)
    if certain:
        return literal(text)
    globs = [escape(part.text) if part.text is not None else part.glob for part in parts]
    tilde = any(glob is not None and glob.startswith("~") for glob in globs)
    return Word(None, text, splits=splits, glob=None if None in globs or tilde else "".join(map(str, globs)))


def _ansi(text: str) -> str | None:
    """The text of `$'…'`, or None where an escape is not one of the plain ones."""

    def decode(found: re.Match[str]) -> str:
        hexadecimal, octal, short, long, plain = found.groups()
        if plain is not None:
            return _ANSI.get(plain, "\0")
        code = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
        return chr(code) if 0 < code < 0xD800 else "\0"

    decoded = _ANSI_ESCAPE.sub(decode, text)
    return None if "\0" in decoded else decoded
