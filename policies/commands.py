"""What a command would run, before it runs: every program, every file that a redirection writes, and what cannot be told.

The script is parsed by tree-sitter's grammar of bash. What the grammar or this module does not fully understand is `unknown`,
and so is everything beyond the bounds: an unknown part never matches a rule that allows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from perdure.policies.hazards import doubts, is_safe_variable
from perdure.policies.programs import DOES_BY_OPTION, Run, subcommand_of
from perdure.policies.patterns import lexical
from perdure.policies.words import UNCERTAIN, Word, literal, word_of
from perdure.policies.wrappers import INTERPRETER, OPAQUE, SHELL, WRAPPERS, command_within, run_by_interpreter

if TYPE_CHECKING:
    from tree_sitter import Node

SCRIPT_BYTES_MAX = 20_000
WORDS_MAX = 1_000
RUNS_MAX = 100
DEPTH_MAX = 40
NESTING_MAX = 6  # scripts within scripts, wrappers within wrappers


@dataclass(frozen=True, slots=True)
class Analysis:
    """Every program that would run, in order; every file that a redirection writes, as written; why the rest is unknown."""

    programs: tuple[Run, ...] = ()
    writes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def _analysed(argv: tuple[str, ...] | None, script: str | None, cwd: str | None) -> Analysis:
    walk = _Walk(cwd)
    if script is not None:
        walk.script(script, 0)
    elif argv is not None:
        if len(argv) > WORDS_MAX or sum(map(len, argv)) > SCRIPT_BYTES_MAX * 5:
            walk.doubt("a command that is too long")
        else:
            walk.command([literal(word) for word in argv], 0)
    return walk.result()


def analyse(argv: Sequence[str] | None, script: str | None, cwd: str | None = None) -> Analysis:
    """The analysis of a shell script, or else of an argument list, whose words no shell expands."""
    return _analysed(tuple(argv) if argv is not None and script is None else None, script, cwd)


def redirection_targets(script: str, cwd: str | None = None) -> tuple[str, ...]:
    """The files that the script's redirections write, as written: for resolving them before the policies are asked."""
    return analyse(None, script, cwd).writes


@cache
def _parser() -> Any:
    import tree_sitter_bash
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_bash.language()))


# Nodes that only hold others. What is in neither table is unknown.
_TRANSPARENT = frozenset(
    "program list pipeline redirected_statement compound_statement subshell if_statement elif_clause else_clause while_statement"
    " do_group case_statement negated_command test_command variable_assignments string concatenation parenthesized_expression"
    " process_substitution heredoc_body array command_name".split()
)
_LEAVES = frozenset(
    "number raw_string ansi_c_string variable_name special_variable_name file_descriptor heredoc_start heredoc_end test_operator".split()
)
_TOKENS = frozenset(
    "; & && || | |& \n ( ) { } [ ] [[ ]] ;; ;& ;;& if then elif else fi while until do done for select in case esac ! \" ` $( <( >("
    " < > >> >| &> &>> >& <& >&- <&- << <<- <<< = += == != =~ -a -o ${ $ : :- - :+ + # ## % %% / // ^ ^^ , ,, $(( )) (( :? ?".split()
) | {"\n", " ", ""}
_WRITING = frozenset({">", ">>", ">|", "&>", "&>>", ">&"})
_ARITHMETIC_TESTS = frozenset({"-eq", "-ne", "-lt", "-le", "-gt", "-ge"})
_ARITHMETIC_SAFE = re.compile(r"[\s0-9+*/%()<>=!&|^~?:,.-]*")


class _Walk:
    """Collects what one command would do."""

    def __init__(self, cwd: str | None) -> None:
        self.cwd = cwd
        self.runs: dict[Run, None] = {}
        self.writes: dict[str, None] = {}
        self.unknown: dict[str, None] = {}

    def result(self) -> Analysis:
        moves = any(run.program.rpartition("/")[2] in {"cd", "pushd", "popd"} for run in self.runs)
        if moves and any(not target.startswith("/") for target in self.writes):
            self.doubt("a relative redirection in a command that changes its directory")
        if moves and any("/" in run.program and not run.program.startswith("/") for run in self.runs):
            self.doubt("a relative program in a command that changes its directory")
        return Analysis(tuple(self.runs), tuple(self.writes), tuple(self.unknown))

    def doubt(self, reason: str) -> None:
        if len(self.unknown) < 20:
            self.unknown[reason[:200]] = None

    # -- scripts ------------------------------------------------------------------------------------------------------

    def script(self, text: str, nesting: int) -> None:
        """Everything that a shell script would do."""
        if nesting > NESTING_MAX:
            self.doubt("scripts within scripts beyond the bound")
            return
        if len(text) > SCRIPT_BYTES_MAX:
            self.doubt(f"a script of more than {SCRIPT_BYTES_MAX:,} characters")
            return
        odd = next((one for one in text if _is_odd(one)), None)
        if odd is not None:
            self.doubt(f"the character U+{ord(odd):04X} in a script")
            return
        joined = join_lines(text)
        if joined is None:
            self.doubt("a line that is continued within a word")
            return
        source = joined.encode("utf-8")
        root = _parser().parse(source).root_node
        if root.has_error:
            self.doubt("a script that cannot be parsed")
        self.node(root, source, 0, nesting)

    def node(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if depth > DEPTH_MAX or len(self.runs) > RUNS_MAX:
            self.doubt("a command beyond the bounds of depth or count")
            return
        kind = node.type
        handler = _HANDLERS.get(kind)
        if handler is not None:
            handler(self, node, source, depth, nesting)
        elif kind in _TRANSPARENT:
            for child in node.children:
                self.node(child, source, depth + 1, nesting)
        elif kind not in _LEAVES and not (not node.is_named and kind in _TOKENS):
            self.doubt(f"{kind.replace('_', ' ')} in a script")
            for child in node.children:
                self.node(child, source, depth + 1, nesting)

    def _within(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            self.node(child, source, depth + 1, nesting)

    def _command(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        words: list[Word] = []
        for child in node.children:
            kind = child.type
            if kind == "command_name":
                words.append(word_of(child.children[0], source) if child.child_count == 1 else UNCERTAIN)
                self._within(child, source, depth, nesting)
            elif kind in {"variable_assignment", "file_redirect", "heredoc_redirect", "herestring_redirect"}:
                self.node(child, source, depth + 1, nesting)
            elif not child.is_named and kind not in {"{", "}", "[", "]", "!", "=", ":", "+", "-", "%", ",", "/", "==", "=~", "^", "#"}:
                self.doubt(f"{kind} among the words of a command")
                words.append(UNCERTAIN)
            else:
                words.append(word_of(child, source) if child.is_named else Word(None, kind))
                self.node(child, source, depth + 1, nesting)
        self.command(words, nesting)

    def _assignment(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        name = node.child_by_field_name("name")
        text = source[name.start_byte : name.end_byte].decode("utf-8", "replace") if name is not None else ""
        if not is_safe_variable(text):
            self.doubt(f"{text or 'something'} is set, which may change what programs do")
        self._within(node, source, depth, nesting)

    def _declaration(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            if child.type not in {"variable_assignment", "variable_name"}:
                word = word_of(child, source)
                if word.text not in {"-r", "-x", "-i", "-g"}:
                    self.doubt("a declaration that may do more than name variables")
            elif child.type == "variable_name" and not is_safe_variable(source[child.start_byte : child.end_byte].decode()):
                self.doubt("a declaration of a variable that programs read")
            self.node(child, source, depth + 1, nesting)

    def _for(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        variable = node.child_by_field_name("variable")
        if variable is not None and not is_safe_variable(source[variable.start_byte : variable.end_byte].decode("utf-8", "replace")):
            self.doubt("a loop over a variable that programs read")
        self._within(node, source, depth, nesting)

    def _case_item(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.children:  # its patterns match text; only what is in them and after them runs
            if child.is_named or child.type not in {")", "(", "|", ";;", ";&", ";;&", "\n"}:
                self.node(child, source, depth + 1, nesting)

    def _redirect(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
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
                self.writes[target] = None
        elif operators == ["<"]:
            into = destination.type == "process_substitution"
            if (target is None and not into and not (word.prefix and not "/dev/".startswith(word.prefix[:5]))) or (target or "").startswith(("/dev/tcp", "/dev/udp")):
                self.doubt("input from a place that is not certain")
        elif operators != ["<&"]:
            self.doubt("an unusual redirection")
        self.node(destination, source, depth + 1, nesting)

    def _expansion(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        text = source[node.start_byte : node.end_byte].decode("utf-8", "replace")
        if re.search(r"@[A-Za-z]*\}$|:=|[^:]=|\[", text):
            self.doubt("an expansion that assigns or evaluates")
        for child in node.children:
            if child.is_named:
                self.node(child, source, depth + 1, nesting)

    def _arithmetic(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """Bash evaluates the contents of variables in arithmetic, array subscripts with substitutions in them included."""
        text = source[node.start_byte : node.end_byte].decode("utf-8", "replace")
        if not _ARITHMETIC_SAFE.fullmatch(text.removeprefix("$((").removeprefix("((").removesuffix("))")):
            self.doubt("arithmetic over what variables hold")
        self._within(node, source, depth, nesting)

    def _expression(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        operators = [source[child.start_byte : child.end_byte].decode("utf-8", "replace") for child in node.children if child.type == "test_operator" or not child.is_named]
        if "-v" in operators or "-R" in operators:
            self.doubt("a test of a variable's name")
        if any(operator in _ARITHMETIC_TESTS for operator in operators) and not _in_single_brackets(node):
            self.doubt("arithmetic over what variables hold")
        self._within(node, source, depth, nesting)

    def _unset(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        for child in node.named_children:
            if child.type != "variable_name" or not is_safe_variable(source[child.start_byte : child.end_byte].decode()):
                self.doubt("unset of something that programs read")
            self.node(child, source, depth + 1, nesting)

    def _leaf(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        """A word that the grammar takes for plain must not hold what a shell would run."""
        text = source[node.start_byte : node.end_byte]
        if b"`" in text.replace(b"\\`", b"") or b"$(" in text.replace(b"\\$", b""):
            self.doubt("a substitution that the grammar does not see")

    def _substitution(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if source[node.start_byte : node.start_byte + 1] == b"`" and b"\\" in source[node.start_byte : node.end_byte]:
            self.doubt("quoting within backticks")  # `\`…\`` is a substitution within, which the grammar takes for text
        for child in node.children:
            self.node(child, source, depth + 1, nesting)

    def _comment(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
        if node.start_byte and source[node.start_byte - 1 : node.start_byte] not in {b" ", b"\t", b"\n", b";", b"&", b"|", b"(", b")"}:
            self.doubt("a # within a word")
        if b"\n" in source[node.start_byte : node.end_byte]:
            self.doubt("a comment of several lines")

    def _heredoc(self, node: Node, source: bytes, depth: int, nesting: int) -> None:
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
            rows = (row for row in range(start.start_point[0] + 1, len(lines)) if (lines[row].lstrip("\t") if tabs else lines[row]) == delimiter)
            if next(rows, -1) != end.start_point[0]:
                self.doubt("a here-document whose end is not certain")
            body = source[start.end_byte : end.start_byte]
            seen = any(child.type == "heredoc_body" and any(one.type != "heredoc_content" for one in child.named_children) for child in node.children)
            if found[1] and (b"`" in body or (b"$" in body and not seen)):
                self.doubt("a substitution in a here-document")
        for child in node.children:
            if child.is_named or child.type not in {"<<", "<<-"}:
                self.node(child, source, depth + 1, nesting)

    # -- one command --------------------------------------------------------------------------------------------------

    def command(self, words: list[Word], nesting: int) -> None:
        """One command's words: the program, and whatever it runs in turn."""
        if not words:
            return
        if nesting > NESTING_MAX or len(self.runs) > RUNS_MAX:
            self.doubt("commands within commands beyond the bound")
            return
        first, rest = words[0], words[1:]
        program = first.text
        if not program or any(not 32 < ord(character) < 127 for character in program):
            self.doubt("a program whose name is not certain")
            self.runs[Run("?")] = None
            return
        if "/" in program and not program.startswith("/") and self.cwd is not None:
            program = lexical(program, self.cwd) if ".." not in program.split("/") else f"{self.cwd}/{program}"
        name = program.rpartition("/")[2]
        subcommand = subcommand_of(name, rest)
        self.runs[Run(program, subcommand)] = None
        if subcommand.startswith(("-", "?")) and name not in DOES_BY_OPTION and subcommand not in {"--version", "--help"}:
            self.doubt(f"{name} with {subcommand} before its subcommand")
        if name in OPAQUE:
            self._opaque(name, rest, nesting)
        elif name == "trap":
            self._trap(rest, nesting)
        elif name == "ssh":
            self._ssh(rest, nesting)
        elif name == "watch":
            self._watch(rest, nesting)
        elif SHELL.fullmatch(name):
            self._shell(name, rest, nesting)
        elif INTERPRETER.fullmatch(name):
            self._interpreter(name, rest)
        elif name == "find":
            self._find(rest, nesting)
        elif name in WRAPPERS:
            self._wrapper(name, rest, nesting)
        elif name in {"alias", "unalias", "function"}:
            self.doubt(f"{name} changes what later words mean")
        else:
            reason = doubts(name, rest)
            if reason is not None:
                self.doubt(reason)

    def _opaque(self, name: str, words: Sequence[Word], nesting: int) -> None:
        if name == "eval" and all(word.text is not None for word in words):
            self.script(" ".join(word.text or "" for word in words), nesting + 1)
        elif name in {"strace", "ltrace", "coproc"} and words:
            self.command([word for word in words if not word.may_be_option], nesting + 1)
            self.doubt(f"{name} runs another program")
        else:
            self.doubt(f"{name} runs what its arguments do not show")

    def _trap(self, words: Sequence[Word], nesting: int) -> None:
        if words and words[0].text is None:
            self.doubt("trap with what the shell expands")
        elif words and words[0].text not in {"-", "", "-l", "-p"}:
            self.script(words[0].text or "", nesting + 1)

    def _ssh(self, words: list[Word], nesting: int) -> None:
        position = 0
        while position < len(words) and words[position].may_be_option:
            text = words[position].text
            if text is None or not re.fullmatch(r"-[46AaCGgKkNnqTtVvXxYy]+|-[lpbcimQ]|-[pl][\w.-]+", text):
                self.doubt(f"ssh {text or 'with what the shell expands'}")
                return
            position += 2 if re.fullmatch(r"-[lpbcimQ]", text) else 1
        remote = words[position + 1 :]
        if any(word.text is None for word in remote):
            self.doubt("ssh runs what the shell expands")
        elif remote:
            self.script(" ".join(word.text or "" for word in remote), nesting + 1)
        elif position < len(words):
            self.doubt("ssh opens a session")

    def _watch(self, words: list[Word], nesting: int) -> None:
        position = 0
        while position < len(words) and words[position].may_be_option:
            text = words[position].text or ""
            if re.fullmatch(r"-[bcdegtwx]*n|--interval", text):
                position += 2
            elif re.fullmatch(r"-[bcdegtwx]+|-n[0-9.]+|--(interval=.*|beep|color|differences|errexit|chgexit|no-title|no-wrap|exec)", text):
                position += 1
            else:
                self.doubt("watch with options that are not certain")
                return
        rest = words[position:]
        if any(word.text is None for word in rest):
            self.doubt("watch runs what the shell expands")
        else:
            self.script(" ".join(word.text or "" for word in rest), nesting + 1)

    def _shell(self, name: str, words: list[Word], nesting: int) -> None:
        for position, word in enumerate(words):
            if word.text is None:
                self.doubt(f"{name} with what the shell expands")
                return
            if re.fullmatch(r"-[euxflivnB]*c[euxflivnB]*", word.text):
                code = words[position + 1 : position + 2]
                if code and code[0].text is not None:
                    self.script(code[0].text, nesting + 1)
                else:
                    self.doubt(f"{name} -c with what is not certain")
                if re.search(r"[li]", word.text):
                    self.doubt(f"{name} reads its start-up files")
                return
            if word.text == "--version":
                return
            if not re.fullmatch(r"[-+][euxfnB]+|--norc|--noprofile|--posix", word.text):
                if word.text.startswith(("-", "+")):
                    self.doubt(f"{name} {word.text}")
                else:
                    self._script_file(word.text)
                return
        self.doubt(f"{name} runs what it reads")

    def _script_file(self, path: str) -> None:
        path = path if "/" in path else f"./{path}"
        if not path.startswith("/") and self.cwd is not None:
            path = lexical(path, self.cwd) if ".." not in path.split("/") else f"{self.cwd}/{path}"
        self.runs[Run(path)] = None

    def _interpreter(self, name: str, words: list[Word]) -> None:
        found = run_by_interpreter(name, words)
        if isinstance(found, str):
            self.doubt(found)
        elif found:
            self._script_file(found[0])

    def _wrapper(self, name: str, words: list[Word], nesting: int) -> None:
        found = command_within(name, words)
        if isinstance(found, str):
            self.doubt(found)
            operands = [word for word in words if word.text is not None and not word.may_be_option and "=" not in word.text]
            self.command(list(operands), nesting + 1)  # so that a rule that forbids still sees what it can
        elif found is not None:
            self.command(found, nesting + 1)

    def _find(self, words: list[Word], nesting: int) -> None:
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if word.text is None:
                if word.may_be_option:
                    self.doubt("find may be given an action by what the shell expands")
            elif word.text in {"-exec", "-execdir", "-ok", "-okdir"}:
                end = next((index for index in range(position, len(words)) if words[index].text in {";", "+"}), len(words))
                inner = [Word(None, "./") if one.text == "{}" else Word(None, one.text[: one.text.index("{}")]) if one.text and "{}" in one.text else one for one in words[position:end]]
                self.command(inner, nesting + 1)
                position = end + 1
                if not inner:
                    self.doubt(f"find {word.text} without a command")
            elif word.text in {"-delete", "-fprint", "-fprint0", "-fprintf", "-fls"}:
                self.doubt(f"find {word.text}")


def _in_single_brackets(node: Node) -> bool:
    parent = node.parent
    while parent is not None and parent.type != "test_command":
        parent = parent.parent
    return parent is not None and parent.children[0].type == "["


def _is_odd(character: str) -> bool:
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


_HANDLERS: dict[str, Callable[[_Walk, Node, bytes, int, int], None]] = {
    "command": _Walk._command,
    "variable_assignment": _Walk._assignment,
    "declaration_command": _Walk._declaration,
    "unset_command": _Walk._unset,
    "for_statement": _Walk._for,
    "case_item": _Walk._case_item,
    "file_redirect": _Walk._redirect,
    "heredoc_redirect": _Walk._heredoc,
    "herestring_redirect": _Walk._within,
    "expansion": _Walk._expansion,
    "simple_expansion": _Walk._within,
    "arithmetic_expansion": _Walk._arithmetic,
    "binary_expression": _Walk._expression,
    "unary_expression": _Walk._expression,
    "comment": _Walk._comment,
    "command_substitution": _Walk._substitution,
    **dict.fromkeys(("word", "regex", "extglob_pattern", "string_content", "heredoc_content"), _Walk._leaf),
}
