"""Which fields of its variables an expression uses: `found.report.path` uses the field `report.path` of `found`.

Where a use goes on with something else than a field (a call, a computed index), the field before it counts, which holds all that
lies within. An index into a list names no field: the fields of a list are those of its elements."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from perdure.daemon.planners import expressions

Field = tuple[str, ...]

_RAW = re.compile(r"(?:[rR][bB]?|[bB][rR])['\"]")  # where such a text ends is not for a few patterns to say
_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*)
    |(?P<text>[bB]?(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<name>[A-Za-z_]\w*)
    |(?P<blank>\s+)
    |(?P<mark>\.\??|\[\??|.)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


@lru_cache(maxsize=4096)
def used_fields(source: str) -> frozenset[tuple[str, Field]]:
    """Each (variable, field) that the expression uses; the field is empty where the variable as a whole is used."""
    free = expressions.names(source)
    if _RAW.search(source):
        return frozenset((name, ()) for name in free)
    tokens = [
        (str(token.lastgroup if token["text"] is None else "text"), token[0])
        for token in _TOKEN.finditer(source)
        if token["comment"] is None and token["blank"] is None
    ]
    found = {
        _use(tokens, at)
        for at, (kind, word) in enumerate(tokens)
        if kind == "name" and word in free and not _is_member(tokens, at)
    }
    seen = {name for name, _ in found}
    return frozenset(found | {(name, ()) for name in free if name not in seen})


def _is_member(tokens: Sequence[tuple[str, str]], at: int) -> bool:
    """Whether the name is a field of what stands before it; a dot before nothing (`.found`) makes it a variable still."""
    if at < 2 or not tokens[at - 1][1].startswith("."):
        return False
    kind, word = tokens[at - 2]
    return (kind in {"name", "text"} and word != "in") or word in {")", "]", "}"}


def _use(tokens: Sequence[tuple[str, str]], at: int) -> tuple[str, Field]:
    name, field = tokens[at][1], []
    at += 1
    while at + 1 < len(tokens):
        mark, (kind, word) = tokens[at][1], tokens[at + 1]
        after = tokens[at + 2][1] if at + 2 < len(tokens) else ""
        if mark in {".", ".?"} and kind == "name" and after != "(":
            field.append(word)
            at += 2
        elif mark in {"[", "[?"} and after == "]" and kind == "text" and re.fullmatch(r"(['\"])\w+\1", word, re.ASCII):
            field.append(word[1:-1])
            at += 3
        elif mark in {"[", "[?"} and after == "]" and word.isdigit():
            at += 3
        else:
            break
    return name, tuple(field)
