"""Shell scripts: their syntax walked once, for every command, redirection and substitution in them.

tree-sitter's grammar of bash reads the script. Where the grammar, bash and this module could see different things, the script
is doubted, and what is doubted is never automatic."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.policies.file_arguments import FILES_MAX
from perdure.policies.hazards import is_safe_variable
from perdure.policies.programs import Run
from perdure.policies.shell_syntax import (
    LEAVES,
    TOKENS,
    TRANSPARENT,
    in_single_brackets,
    is_odd,
    join_lines,
    parser,
    takes_words_apart,
)
from perdure.policies.words import UNCERTAIN, Word, literal, word_of

if TYPE_CHECKING:
    from tree_sitter import Node

SCRIPT_BYTES_MAX = 20_000
RUNS_MAX = 100
DEPTH_MAX = 40
NESTING_MAX = 6  # scripts within scripts, wrappers within wrappers


@dataclass(slots=True)
class Findings:
    """What has been seen of one command so far, each thing once and in order."""

    runs: dict[Run, None] = field(default_factory=dict)
    writes: dict[str, None] = field(default_factory=dict)
    unknown: dict[str, None] = field(default_factory=dict)
    files: list[tuple[Word, bool]] = field(
        default_factory=list
    )  # words that may name files; whether what is below counts
    unlocated: dict[str, None] = field(default_factory=dict)  # why more files may be used than these
    variables: dict[str, list[Word] | None] = field(default_factory=dict)  # every value given; None: it cannot be told

    def doubt(self, reason: str) -> None:
        """Something cannot be told; twenty reasons are enough."""
        if len(self.unknown) < 20:
            self.unknown[reason[:200]] = None

    def assign(self, name: str, values: Sequence[Word] | None) -> None:
        """A variable is given one of these values, or one that cannot be told."""
        known = self.variables.setdefault(name, [])
        if values is None or known is None or len(known) + len(values) > FILES_MAX:
            self.variables[name] = None
        else:
            known += values


_WRITING = frozenset({">", ">>", ">|", "&>", "&>>", ">&"})
_ARITHMETIC_TESTS = frozenset({"-eq", "-ne", "-lt", "-le", "-gt", "-ge"})
_ARITHMETIC_SAFE = re.compile(r"[\s0-9+*/%()<>=!&|^~?:,.-]*")


class ScriptReader:
    """Reads scripts; hands each command's words to `command` with the nesting that they stand in."""

    def __init__(self, findings: Findings, command: Callable[[list[Word], int], None]) -> None:
        self.findings = findings
        self.doubt = findings.doubt
        self.command = command

    def read(self, text: str, nesting: int) -> None:
        """Everything that a shell script would do."""
        if nesting > NESTING_MAX:
            self.doubt("scripts within scripts beyond the bound")
            return
        if len(text) > SCRIPT_BYTES_MAX:
            self.doubt(f"a script of more than {SCRIPT_BYTES_MAX:,} characters")
            return
        odd = next((one for one in text if is_odd(one)), None)
        if odd is not None:
            self.doubt(f"the character U+{ord(odd):04X} in a script")
            return
        joined = join_lines(text)
        if joined is None:
            self.doubt("a line that is continued within a word")
            return
        source = joined.encode("utf-8")
        root = parser().parse(source).root_node
        if root.has_error:
            self.doubt("a script that cannot be parsed")
        if takes_words_apart(root):
            self.doubt("a word that the grammar takes for two")
        self.node(root, source, 0, nesting)

    def node(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if depth > DEPTH_MAX or len(self.findings.runs) > RUNS_MAX:
            self.doubt("a command beyond the bounds of depth or count")
            return
        kind = node.type
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, node, source, depth, nesting)
        elif kind in TRANSPARENT:
            for child in node.children:
                self.node(child, source, depth + 1, nesting)
        elif kind not in LEAVES and not (not node.is_named and kind in TOKENS):
            self.doubt(f"{kind.replace('_', ' ')} in a script")
            for child in node.children:
                self.node(child, source, depth + 1, nesting)

    def within(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            self.node(child, source, depth + 1, nesting)

    def simple_command(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        words: list[Word] = []
        for child in node.children:
            kind = child.type
            if kind == "command_name":
                words.append(word_of(child.children[0], source) if child.child_count == 1 else UNCERTAIN)
                self.within(child, source, depth, nesting)
            elif kind in {"variable_assignment", "file_redirect", "heredoc_redirect", "herestring_redirect"}:
                self.node(child, source, depth + 1, nesting)
            elif not child.is_named and kind not in {
                "{",
                "}",
                "[",
                "]",
                "!",
                "=",
                ":",
                "+",
                "-",
                "%",
                ",",
                "/",
                "==",
                "=~",
                "^",
                "#",
            }:
                self.doubt(f"{kind} among the words of a command")
                words.append(UNCERTAIN)
            else:
                words.append(word_of(child, source) if child.is_named else Word(None, kind))
                self.node(child, source, depth + 1, nesting)
        self.command(words, nesting)

    def assignment(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        name = node.child_by_field_name("name")
        text = source[name.start_byte : name.end_byte].decode("utf-8", "replace") if name is not None else ""
        if not is_safe_variable(text):
            self.doubt(f"{text or 'something'} is set, which may change what programs do")
        value = node.child_by_field_name("value")
        plain = not any(child.type == "+=" for child in node.children)
        if value is None:
            self.findings.assign(text, [literal("")] if plain else None)
        else:
            self.findings.assign(text, [word_of(value, source)] if plain and value.type != "array" else None)
        self.within(node, source, depth, nesting)

    def declaration(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            if child.type not in {"variable_assignment", "variable_name"}:
                word = word_of(child, source)
                if word.text not in {"-r", "-x", "-i", "-g"}:
                    self.doubt("a declaration that may do more than name variables")
            elif child.type == "variable_name" and not is_safe_variable(
                source[child.start_byte : child.end_byte].decode()
            ):
                self.doubt("a declaration of a variable that programs read")
            self.node(child, source, depth + 1, nesting)

    def for_loop(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        variable = node.child_by_field_name("variable")
        if variable is not None and not is_safe_variable(
            source[variable.start_byte : variable.end_byte].decode("utf-8", "replace")
        ):
            self.doubt("a loop over a variable that programs read")
        if variable is not None:
            name = source[variable.start_byte : variable.end_byte].decode("utf-8", "replace")
            values = [word_of(child, source) for child in node.children_by_field_name("value")]
            self.findings.assign(name, values or None)  # without a list it goes over the script's own arguments
        self.within(node, source, depth, nesting)

    def case_item(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.children:  # its patterns match text; only what is in them and after them runs
            if child.is_named or child.type not in {")", "(", "|", ";;", ";&", ";;&", "\n"}:
                self.node(child, source, depth + 1, nesting)

    def redirection(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        operators = [child.type for child in node.children if not child.is_named]
        destination = node.child_by_field_name("destination")
        if destination is None:
            if any(operator not in {">&-", "<&-"} for operator in operators):
                self.doubt("a redirection without a target")
            return
        word = word_of(destination, source)
        target = word.text
        if any(operator in _WRITING for operator in operators):
            copies = operators == [">&"] and target is not None and re.fullmatch(r"[0-9]+-?|-", target)
            if target is None or target.startswith(("/dev/tcp", "/dev/udp")):
                self.doubt("a redirection whose target is not certain")
            elif not copies:
                self.findings.writes[target] = None
                self.findings.files.append((word, False))
        elif operators == ["<"]:
            into = destination.type == "process_substitution"
            if (target is None and not into and not (word.prefix and not "/dev/".startswith(word.prefix[:5]))) or (
                target or ""
            ).startswith(("/dev/tcp", "/dev/udp")):
                self.doubt("input from a place that is not certain")
            self.findings.files.append((word, False))
        elif operators != ["<&"]:
            self.doubt("an unusual redirection")
        self.node(destination, source, depth + 1, nesting)

    def expansion(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        text = source[node.start_byte : node.end_byte].decode("utf-8", "replace")
        start = re.match(r"\$\{[^}:]*:(?![-=+?])(.*)\}$", text, re.DOTALL)  # `${x:3:2}`: where it begins is arithmetic
        if re.search(r"@[A-Za-z]*\}$|:=|[^:]=|\[", text) or (start and not _ARITHMETIC_SAFE.fullmatch(start[1])):
            self.doubt("an expansion that assigns or evaluates")
        for child in node.children:
            if child.is_named:
                self.node(child, source, depth + 1, nesting)

    def arithmetic(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """Bash evaluates the contents of variables in arithmetic, array subscripts with substitutions in them included."""
        text = source[node.start_byte : node.end_byte].decode("utf-8", "replace")
        if not _ARITHMETIC_SAFE.fullmatch(text.removeprefix("$((").removeprefix("((").removesuffix("))")):
            self.doubt("arithmetic over what variables hold")
        self.within(node, source, depth, nesting)

    def compound(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """`{ … }`, or `(( … ))`, which is arithmetic."""
        if node.children[0].type == "((":
            self.arithmetic(node, source, depth, nesting)
            return
        for child in node.children:
            self.node(child, source, depth + 1, nesting)

    def array(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            if source[child.start_byte : child.start_byte + 1] == b"[":
                self.doubt("arithmetic over what variables hold")  # `a=([x]=y)`: where it goes is arithmetic
            self.node(child, source, depth + 1, nesting)

    def test_expression(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        operators = [
            source[child.start_byte : child.end_byte].decode("utf-8", "replace")
            for child in node.children
            if child.type == "test_operator" or not child.is_named
        ]
        if "-v" in operators or "-R" in operators:
            self.doubt("a test of a variable's name")
        if any(operator in _ARITHMETIC_TESTS for operator in operators) and not in_single_brackets(node):
            self.doubt("arithmetic over what variables hold")
        self.within(node, source, depth, nesting)

    def unset(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            if child.type != "variable_name" or not is_safe_variable(
                source[child.start_byte : child.end_byte].decode()
            ):
                self.doubt("unset of something that programs read")
            self.node(child, source, depth + 1, nesting)

    def leaf(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """A word that the grammar takes for plain must not hold what a shell would run."""
        text = source[node.start_byte : node.end_byte]
        if b"`" in text.replace(b"\\`", b"") or b"$(" in text.replace(b"\\$", b""):
            self.doubt("a substitution that the grammar does not see")

    def substitution(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if source[node.start_byte : node.start_byte + 1] == b"`" and b"\\" in source[node.start_byte : node.end_byte]:
            self.doubt("quoting within backticks")  # `\`…\`` is a substitution within, which the grammar takes for text
        for child in node.children:
            self.node(child, source, depth + 1, nesting)

    def comment(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if node.start_byte and source[node.start_byte - 1 : node.start_byte] not in {
            b" ",
            b"\t",
            b"\n",
            b";",
            b"&",
            b"|",
            b"(",
            b")",
        }:
            self.doubt("a # within a word")
        if b"\n" in source[node.start_byte : node.end_byte]:
            self.doubt("a comment of several lines")

    def heredoc(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """The grammar and bash must agree on where the text ends: at the first line that is the delimiter."""
        start = next((child for child in node.children if child.type == "heredoc_start"), None)
        end = next((child for child in node.children if child.type == "heredoc_end"), None)
        text = source[start.start_byte : start.end_byte].decode("utf-8", "replace") if start is not None else ""
        found = re.fullmatch(r"(\w+)|'(\w+)'|\"(\w+)\"", text)
        lines = source.decode("utf-8", "replace").split("\n")
        if start is None or end is None or found is None or source.count(b"<<") > 1:
            self.doubt("a here-document whose end is not certain")
        else:
            delimiter = next(group for group in found.groups() if group)
            tabs = any(child.type == "<<-" for child in node.children)
            rows = (
                row
                for row in range(start.start_point[0] + 1, len(lines))
                if (lines[row].lstrip("\t") if tabs else lines[row]) == delimiter
            )
            if next(rows, -1) != end.start_point[0]:
                self.doubt("a here-document whose end is not certain")
            body = source[start.end_byte : end.start_byte]
            seen = any(
                child.type == "heredoc_body" and any(one.type != "heredoc_content" for one in child.named_children)
                for child in node.children
            )
            if found[1] and (b"`" in body or (b"$" in body and not seen)):
                self.doubt("a substitution in a here-document")
        for child in node.children:
            if child.is_named or child.type not in {"<<", "<<-"}:
                self.node(child, source, depth + 1, nesting)


_HANDLERS: dict[str, Callable[[ScriptReader, Node, bytes, int, int], None]] = {
    "command": ScriptReader.simple_command,
    "variable_assignment": ScriptReader.assignment,
    "declaration_command": ScriptReader.declaration,
    "unset_command": ScriptReader.unset,
    "for_statement": ScriptReader.for_loop,
    "case_item": ScriptReader.case_item,
    "file_redirect": ScriptReader.redirection,
    "heredoc_redirect": ScriptReader.heredoc,
    "herestring_redirect": ScriptReader.within,
    "expansion": ScriptReader.expansion,
    "simple_expansion": ScriptReader.within,
    "arithmetic_expansion": ScriptReader.arithmetic,
    "compound_statement": ScriptReader.compound,
    "array": ScriptReader.array,
    "binary_expression": ScriptReader.test_expression,
    "unary_expression": ScriptReader.test_expression,
    "comment": ScriptReader.comment,
    "command_substitution": ScriptReader.substitution,
    **dict.fromkeys(("word", "regex", "extglob_pattern", "string_content", "heredoc_content"), ScriptReader.leaf),
}
