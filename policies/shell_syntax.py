"""Where bash and its grammar could read a script differently: found before the script's syntax is believed."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tree_sitter import Node


@cache
def parser() -> Any:
    """tree-sitter's parser of bash, made once."""
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


# Nodes that only hold others. What is in neither table is unknown.
TRANSPARENT = frozenset(
    [
        "program",
        "list",
        "pipeline",
        "redirected_statement",
        "subshell",
        "if_statement",
        "elif_clause",
        "else_clause",
        "while_statement",
        "do_group",
        "case_statement",
        "negated_command",
        "test_command",
        "variable_assignments",
        "string",
        "concatenation",
        "parenthesized_expression",
        "process_substitution",
        "heredoc_body",
        "command_name",
    ]
)
LEAVES = frozenset(
    [
        "number",
        "raw_string",
        "ansi_c_string",
        "variable_name",
        "special_variable_name",
        "file_descriptor",
        "heredoc_start",
        "heredoc_end",
        "test_operator",
    ]
)
TOKENS = frozenset(
    [
        ";",
        "&",
        "&&",
        "||",
        "|",
        "|&",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "[[",
        "]]",
        ";;",
        ";&",
        ";;&",
        "if",
        "then",
        "elif",
        "else",
        "fi",
        "while",
        "until",
        "do",
        "done",
        "for",
        "select",
        "in",
        "case",
        "esac",
        "!",
        '"',
        "`",
        "$(",
        "<(",
        ">(",
        "<",
        ">",
        ">>",
        ">|",
        "&>",
        "&>>",
        ">&",
        "<&",
        ">&-",
        "<&-",
        "<<",
        "<<-",
        "<<<",
        "=",
        "+=",
        "==",
        "!=",
        "=~",
        "-a",
        "-o",
        "${",
        "$",
        ":",
        ":-",
        "-",
        ":+",
        "+",
        "#",
        "##",
        "%",
        "%%",
        "/",
        "//",
        "^",
        "^^",
        ",",
        ",,",
        "$((",
        "))",
        "((",
        ":?",
        "?",
    ]
) | {"\n", " ", ""}

_WORDS = frozenset(
    [
        "word",
        "number",
        "string",
        "raw_string",
        "ansi_c_string",
        "concatenation",
        "simple_expansion",
        "expansion",
        "command_substitution",
        "arithmetic_expansion",
        "process_substitution",
        "command_name",
        "brace_expression",
    ]
)
_WORD_ENDS = _WORDS | {"file_redirect", "herestring_redirect", "heredoc_start", "variable_assignment", "variable_name"}


def takes_words_apart(root: Node) -> bool:
    """Whether two words touch: ls`x`y is one word for bash, and two for the grammar. So is the 2 in ls2>f."""
    pending = [root]
    while pending:
        node = pending.pop()
        children = node.children
        pending += children
        if node.type in {
            "concatenation",
            "string",
            "heredoc_body",
            "expansion",
            "variable_assignment",
            "subscript",
            "arithmetic_expansion",
        }:
            continue
        for left, right in pairwise(children):
            if left.end_byte != right.start_byte or left.type not in _WORD_ENDS:
                continue
            descriptor = (
                right.type in {"file_redirect", "heredoc_redirect", "herestring_redirect"}
                and right.children[0].type == "file_descriptor"
            )
            if right.type in _WORDS or descriptor:
                return True
        if node.type == "redirected_statement" and any(
            left.end_byte == right.start_byte and right.child_count and right.children[0].type == "file_descriptor"
            for left, right in pairwise(children)
        ):
            return True
    return False


def in_single_brackets(node: Node) -> bool:
    """Whether the node stands in `[ … ]`, whose arguments are words, and not in `[[ … ]]`, which evaluates them."""
    parent = node.parent
    while parent is not None and parent.type != "test_command":
        parent = parent.parent
    return parent is not None and parent.children[0].type == "["


def is_odd(character: str) -> bool:
    """Characters that shells and people read differently: controls, blanks that are none, what is invisible."""
    if character in "\n\t" or " " <= character <= "~":
        return False
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}


def join_lines(text: str) -> str | None:
    """The script with continued lines joined, as bash does before it splits words; tree-sitter sees a blank there instead.
    None where the difference could matter: a word is split by it, or quoting cannot be followed."""
    if "\\\n" not in text:
        return text
    if "<<" in text or "$'" in text or re.search(r"(?m)(?:^|\s)#", text):
        return None
    out: list[str] = []
    quote = ""
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and quote != "'":
            following = text[position + 1 : position + 2]
            if following == "\n":
                if quote or not (out and out[-1] in " \t;|&("):
                    return None
                out.append(" ")
            else:
                out.append(character + following)
            position += 2
            continue
        if character in "'\"" and quote in {"", character}:
            quote = "" if quote else character
        out.append(character)
        position += 1
    return "".join(out)
