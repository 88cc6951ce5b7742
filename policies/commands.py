"""What a command would run, before it runs: every program, every file that a redirection writes, and what cannot be told.

What is not fully understood is `unknown`, and so is everything beyond the bounds: an unknown part never matches a rule that
allows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from perdure.policies.file_arguments import (
    FileArgument,
    Named,
    assigned_by,
    entered,
    files_named,
    found_by,
    located,
    wrapper_files,
)
from perdure.policies.hazards import doubts
from perdure.policies.patterns import lexical
from perdure.policies.programs import DOES_BY_OPTION, Run, subcommand_of
from perdure.policies.shell import NESTING_MAX, RUNS_MAX, SCRIPT_BYTES_MAX, Findings, ScriptReader
from perdure.policies.words import PIPE, UNCERTAIN, Word, literal
from perdure.policies.wrappers import INTERPRETER, OPAQUE, SHELL, WRAPPERS, command_within, run_by_interpreter

WORDS_MAX = 1_000

KEYWORDS = frozenset({"!", "[[", "]]", "{", "}", "case", "coproc", "do", "done", "elif", "else", "esac", "fi", "for", "function",
                      "if", "in", "select", "then", "until", "while"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Analysis:
    """Every program that would run, in order; every file that is certainly written (by a redirection, by `tee`), as written; why
    the rest is unknown. `files` are all files that the command names, the written ones too; `unlocated` says why there may be
    more."""

    programs: tuple[Run, ...] = ()
    writes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    files: tuple[FileArgument, ...] = ()
    unlocated: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def _analysed(argv: tuple[str, ...] | None, script: str | None, cwd: str | None) -> Analysis:
    walk = _CommandReader(cwd)
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


def named_files(argv: Sequence[str] | None, script: str | None, cwd: str | None = None) -> tuple[FileArgument, ...]:
    """The files that a command names: for resolving them before the policies are asked."""
    return analyse(argv, script, cwd).files


class _CommandReader:
    """Collects what one command would do."""

    def __init__(self, cwd: str | None) -> None:
        self.cwd = cwd
        self.relative = False  # whether a program was named relative to the working directory
        self.moves: list[tuple[str, list[Word]]] = []  # every change of the command's own directory
        self.elsewhere = False  # whether a program was told to work in another directory
        self.findings = Findings()
        self.special = {"trap": self._trap, "ssh": self._ssh, "watch": self._watch, "find": self._find}
        self.doubt = self.findings.doubt
        self.script = ScriptReader(self.findings, self.command).read

    def result(self) -> Analysis:
        found = self.findings
        if self.moves and any(not target.startswith("/") for target in self.findings.writes):
            self.doubt("a relative redirection in a command that changes its directory")
        if self.moves and self.relative:
            self.doubt("a relative program in a command that changes its directory")
        starts = None if self.elsewhere else entered(self.moves)
        files, all_told = located(found.files, found.variables, starts)
        if not all_told:
            found.unlocated["a file whose name or directory is only known when it runs"] = None
        return Analysis(tuple(found.runs), tuple(found.writes), tuple(found.unknown), files, tuple(found.unlocated))

    def _files(self, named: Named) -> None:
        found = self.findings
        found.files += named.files
        self.elsewhere = self.elsewhere or named.moves
        if named.doubt is not None:
            found.unlocated[named.doubt] = None
        for word in named.writes:
            if word.text is not None:
                found.writes[word.text] = None
            elif word != PIPE:
                self.doubt("a program that writes a file whose name is not certain")

    def command(self, words: list[Word], nesting: int) -> None:
        """One command's words: the program, and whatever it runs in turn."""
        if not words:
            return
        if nesting > NESTING_MAX or len(self.findings.runs) > RUNS_MAX:
            self.doubt("commands within commands beyond the bound")
            return
        first, rest = words[0], words[1:]
        program = first.text
        if not program or any(not 32 < ord(character) < 127 for character in program):
            self.doubt("a program whose name is not certain")
            self.findings.runs[Run("?")] = None
            return
        program = self._located(program)
        name = program.rpartition("/")[2]
        subcommand = subcommand_of(name, rest)
        self.findings.runs[Run(program, subcommand)] = None
        if (
            subcommand.startswith(("-", "?"))
            and name not in DOES_BY_OPTION
            and subcommand not in {"--version", "--help"}
        ):
            self.doubt(f"{name} with {subcommand} before its subcommand")
        if program in KEYWORDS:  # the parser took for a program what bash reads as its own word, and runs what follows
            self.doubt(f"the shell's word {program} where a program should be")
            self.command(rest, nesting + 1)
            return
        if name in {"cd", "pushd", "popd"}:
            self.moves.append((name, rest))
        for variable in assigned_by(name, rest):
            self.findings.assign(variable, None)
        reader = self.special.get(name) or self._runner(name)
        if reader is not None:
            reader(name, rest, nesting)
            return
        self._files(files_named(name, rest))
        if (reason := doubts(name, rest)) is not None:
            self.doubt(reason)

    def _runner(self, name: str) -> Callable[[str, list[Word], int], None] | None:
        if name in OPAQUE:
            return self._opaque
        if SHELL.fullmatch(name):
            return self._shell
        if INTERPRETER.fullmatch(name):
            return self._interpreter
        return self._wrapper if name in WRAPPERS else None

    def _opaque(self, name: str, words: list[Word], nesting: int) -> None:
        if name == "eval" and all(word.text is not None for word in words):
            self.script(" ".join(word.text or "" for word in words), nesting + 1)
        elif name in {"strace", "ltrace", "coproc"} and words:
            self.command([word for word in words if not word.may_be_option], nesting + 1)
            self.doubt(f"{name} runs another program")
        else:
            self.doubt(f"{name} runs what its arguments do not show")

    def _trap(self, _name: str, words: list[Word], nesting: int) -> None:
        if words and words[0].text is None:
            self.doubt("trap with what the shell expands")
        elif words and words[0].text not in {"-", "", "-l", "-p"}:
            self.script(words[0].text or "", nesting + 1)

    def _ssh(self, _name: str, words: list[Word], nesting: int) -> None:
        self.findings.unlocated["ssh uses files of another machine"] = None
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

    def _watch(self, _name: str, words: list[Word], nesting: int) -> None:
        position = 0
        while position < len(words) and words[position].may_be_option:
            text = words[position].text or ""
            if re.fullmatch(r"-[bcdegtwx]*n|--interval", text):
                position += 2
            elif re.fullmatch(
                r"-[bcdegtwx]+|-n[0-9.]+|--(interval=.*|beep|color|differences|errexit|chgexit|no-title|no-wrap|exec)",
                text,
            ):
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
                    self._files(files_named(word.text, words[position + 1 :]))
                return
        self.doubt(f"{name} runs what it reads")

    def _located(self, program: str) -> str:
        """The program's path from the working directory, where it is named by a path; `..` is left for what it may be."""
        if "/" not in program or program.startswith("/"):
            return program
        self.relative = True
        if self.cwd is None:
            return program
        return f"{self.cwd}/{program}" if ".." in program.split("/") else lexical(program, self.cwd)

    def _script_file(self, path: str) -> None:
        path = self._located(path if "/" in path else f"./{path}")
        self.findings.runs[Run(path)] = None

    def _interpreter(self, name: str, words: list[Word], _nesting: int) -> None:
        found = run_by_interpreter(name, words)
        if isinstance(found, str):
            self.doubt(found)
        elif found:
            self._script_file(found[0])
            self._files(files_named(found[0], words[1:]))

    def _wrapper(self, name: str, words: list[Word], nesting: int) -> None:
        found = command_within(name, words)
        inner = [] if not isinstance(found, list) else found[:-1] if found[-1:] == [UNCERTAIN] else found
        own = words[: len(words) - len(inner)]
        self._files(wrapper_files(name, own))
        for word in own:
            if name in {"env", "sudo"} and "=" in (word.text if word.text is not None else word.prefix):
                self.findings.assign((word.text or word.prefix).partition("=")[0], None)
        if isinstance(found, str):
            self.doubt(found)
            operands = [
                word for word in words if word.text is not None and not word.may_be_option and "=" not in word.text
            ]
            self.command(list(operands), nesting + 1)  # so that a rule that forbids still sees what it can
        elif found is not None:
            self.command(found, nesting + 1)

    def _find(self, _name: str, words: list[Word], nesting: int) -> None:
        starts, each = found_by(words)
        self.findings.files += [(start, False) for start in starts]
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if word.text is None:
                if word.may_be_option:
                    self.doubt("find may be given an action by what the shell expands")
            elif word.text in {"-exec", "-execdir", "-ok", "-okdir"}:
                end = next(
                    (index for index in range(position, len(words)) if words[index].text in {";", "+"}), len(words)
                )
                inner = [
                    each
                    if one.text == "{}"
                    else Word(None, one.text[: one.text.index("{}")])
                    if one.text and "{}" in one.text
                    else one
                    for one in words[position:end]
                ]
                self.command(inner, nesting + 1)
                position = end + 1
                if not inner:
                    self.doubt(f"find {word.text} without a command")
            elif word.text in {"-delete", "-fprint", "-fprint0", "-fprintf", "-fls"}:
                self.doubt(f"find {word.text}")
            elif word.text in {"-samefile", "-anewer", "-cnewer", "-newer"}:
                self.findings.files += [(one, False) for one in words[position : position + 1]]
            elif word.text == "-files0-from":
                self.findings.unlocated["find reads where to begin"] = None
