"""Which words of a command name files: those that certainly do, and all that might.

Programs that are known here say which of their words are something else (a pattern, a number). Of every other program each word
counts as a file, and so does what stands in it behind `=`, `:`, `,` or `@`, or right behind an option's letter. A word that names
no file after all then stands for one in the working directory: that costs a rule for narrower directories a question, no more."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import pairwise
from string import ascii_letters

from perdure.policies.operands import AWKS, NO_FILES, TAKES, Takes
from perdure.policies.words import PIPE, Word, literal

FILES_MAX = 500
CLUSTER_MAX = 20  # letters of options in one word
_WEB = re.compile(r"(?:https?|wss?|ssh|git|s?ftp)://", re.ASCII | re.IGNORECASE)
_SPLITS = re.compile(r"[\s*?\[\\]")  # what a shell would take apart, or expand again, in a variable's value
_HIDDEN_GLOB = re.compile(r"(?:^|/)\.[*?]")  # may be `..`
# Where a process of its own finds itself: what these lead to is another thing for whoever looks before it runs.
_OF_A_PROCESS = re.compile(r"/proc/(?:.*/)?(?:root|cwd|fd|exe|map_files|environ|mem)(?:/|$)|/dev/fd/", re.DOTALL)
_PROCESSES = re.compile(r"/proc(?:/.*)?", re.DOTALL)  # below it lie the environments and the memory of processes
_STREAMS = frozenset({"-", "/dev/stdin", "/dev/fd/0"})


@dataclass(frozen=True, slots=True)
class FileArgument:
    """A file as a command names it: `text` is a path, or a `glob` (`*`, `?`, `[…]` around what was quoted, a leading `~`);
    `below` says that what lies below it counts too."""

    text: str
    glob: bool = False
    below: bool = False

    @property
    def directory(self) -> str:
        """Where a glob looks: its path up to the first part that is not certain."""
        parts = self.text.split("/")
        certain = next(
            index
            for index, part in enumerate(parts)
            if any(character in part for character in "*?[") or index == len(parts) - 1
        )
        return "/".join(parts[:certain]) or ("/" if self.text.startswith("/") else ".")


@dataclass(slots=True)
class Named:
    """The words of one command that are or may be files, each with whether what lies below it counts; files that are certainly
    written; whether relative ones start elsewhere; why there may be others."""

    files: list[tuple[Word, bool]] = field(default_factory=list)
    writes: list[Word] = field(default_factory=list)
    moves: bool = False
    doubt: str | None = None


# The few options by which one of them opens a file after all.
_OPENED_AFTER_ALL: Mapping[str, str] = {"date": "fr", "hostname": "F"}
_INTO = frozenset({"cp", "mv", "ln", "install"})
_MOVING = re.compile(r"-C.*|--(?:directory|chdir|cd|cwd|work-tree|git-dir|root|chroot)(?:=.*)?", re.DOTALL)
_LISTING = re.compile(r"-T.*|--(?:files0?-from|include-from|exclude-from).*|@.*", re.DOTALL)
_LISTERS = frozenset({"tar", "bsdtar", "rsync", "zip", "cpio", "du", "7z", "gcc", "cc", "javac"})
_ASSIGNING = frozenset({"read", "mapfile", "readarray", "getopts", "printf", "wait", "let"})


def files_named(name: str, words: Sequence[Word]) -> Named:
    """What the words after the program `name` may say about files."""
    if name in NO_FILES:
        return _opened_after_all(name, words)
    takes = TAKES.get(name)
    if takes is None:
        return _of_any_program(name, words)
    named = _Words(takes, words).read()
    if name in {"stat", "du", "readlink"} or (name == "ls" and _looks_at_links(words)):
        named.files = [(replace(word, linked=False), below) for word, below in named.files]
    if name in AWKS and any(re.search(r"getline|ARGV|ARGC", word.text or "") for word in words):
        named.doubt = "awk reads files that its program names"
    elif name == "diff":  # of a file and a directory, it reads the file of that name in there
        starts = [word.text for word, _ in named.files if word.text]
        inner = [
            f"{into}/{posixpath.basename(start.rstrip('/'))}" for into in starts for start in starts if start != into
        ]
        named.files += [(literal(path), False) for path in inner[:FILES_MAX]]
        if _follows_links_below(words):
            named.doubt = "diff -r follows links out of what it compares; --no-dereference does not"
    elif name == "strings" and any((word.text or word.prefix).startswith("@") for word in words):
        named.doubt = "strings reads its options from a file"
    elif name == "jq" and any(re.search(r"\b(?:import|include)\b", word.text or "") for word in words):
        named.doubt = "jq loads modules"
    elif name == "tee" or (name in {"sed", "gsed"} and _in_place(words)):
        named.writes = [word for word, _ in named.files]
    return named


def assigned_by(name: str, words: Iterable[Word]) -> Iterator[str]:
    """The variables to which a command of the shell's own gives values that nobody can tell."""
    if name in _ASSIGNING:
        yield from (word.text for word in words if word.text is not None and word.text.isidentifier())


def wrapper_files(name: str, words: Sequence[Word]) -> Named:
    """The files among a wrapper's own words, before the command that it runs."""
    named = Named()
    if name == "flock":
        named.files = [(word, False) for word in words if not word.may_be_option]
    elif name == "xargs":
        for index, word in enumerate(words):
            given = re.fullmatch(r"-[0rtpxo]*a(.*)|--arg-file(?:=(.*))?", word.text or "", re.DOTALL)
            if given:
                named.files.append(
                    (literal(given[1] or given[2]) if given[1] or given[2] else (*words, Word(None))[index + 1], False)
                )
    elif name in {"env", "sudo"}:
        named.moves = any(word.text is None or re.match(r"-[A-Za-z0]*C|--chdir", word.text) for word in words)
    elif name == "chroot":
        named.doubt = "chroot changes where every path leads"
    return named


def found_by(words: Sequence[Word]) -> tuple[list[Word], Word]:
    """The starting points of `find`, and the word that `{}` stands for: no link to elsewhere where nothing but regular files is
    found, and anything where links are followed."""
    texts = {word.text for word in words}
    starts: list[Word] = []
    for word in words:
        if word.may_be_option or word.text in {"(", "!", ","}:
            if word.text in {"-H", "-L", "-P"} and not starts:
                continue
            break
        starts.append(word)
    starts = starts or [literal(".")]
    if texts & {"-L", "-H", "-follow", "-files0-from"} or not all(start.text for start in starts):
        return starts, Word(None, "./")
    files = ("-type", "f") in pairwise(word.text for word in words) and not texts & {
        "-o",
        "-or",
        "!",
        "-not",
        ",",
        "(",
        None,
    }
    return starts, Word(None, "./", below=tuple(start.text or "" for start in starts), linked=not files)


class _Words:
    """Reads the words of a program that is known."""

    def __init__(self, takes: Takes, words: Sequence[Word]) -> None:
        self.takes = takes
        self.words = words
        self.named = Named()
        self.below = takes.below is True
        self.lead = takes.lead
        self.operands: list[Word] = []
        self.at = 0

    def read(self) -> Named:
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word.text == "--":
                self.operands += self.words[self.at :]
                break
            if word.text is not None and word.may_be_option:
                (self._long if word.text.startswith("--") else self._short)(word.text)
            elif word.may_be_option and word.prefix.startswith("-"):
                self._uncertain_option(word)
            else:
                self.operands.append(word)
        files = self.operands[self.lead :]
        if not files and self.takes.default is not None and (self.below or not self.takes.lead):
            files = [literal(self.takes.default)]
        self.named.files += [(word, self.below) for word in files]
        return self.named

    def _seen(self, option: str) -> None:
        takes = self.takes
        if option in takes.led:
            self.lead = 0
        if option in takes.lists:
            self.named.doubt = f"{option} finds files that no word names"
        if isinstance(takes.below, tuple) and option in takes.below:
            self.below = True

    def _long(self, text: str) -> None:
        given, equals, value = text[2:].partition("=")
        for option in (
            *self.takes.led,
            *self.takes.lists,
            *(self.takes.below if isinstance(self.takes.below, tuple) else ()),
        ):
            if option.startswith(f"--{given}"):  # an abbreviation may be any of them
                self._seen(option)
        if not equals and self.at < len(self.words) and any(name.startswith(given) for name in self.takes.long_files):
            self.named.files.append((self.words[self.at], False))
            self.at += 1
        # without `=` the value may be the next word, or there may be none: that word then counts as an operand
        if equals and not any(name.startswith(given) for name in self.takes.long_values):
            self.named.files += [(each, self.below) for each in _candidates(literal(value))]

    def _short(self, text: str) -> None:
        for index, letter in enumerate(text[1:], start=1):
            rest = text[index + 1 :]
            self._seen(f"-{letter}")
            if letter in self.takes.attached:
                return
            if letter in self.takes.values:
                self.at += 0 if rest else 1
                return
            if letter in self.takes.files:
                if rest:
                    self.named.files.append((literal(rest), False))
                elif self.at < len(self.words):
                    self.named.files.append((self.words[self.at], False))
                    self.at += 1
                return
            if rest and not rest[0].isalnum():
                self.named.files.append((literal(rest), self.below))
                return

    def _uncertain_option(self, word: Word) -> None:
        head = word.prefix
        harmless = (
            "=" in head and any(name == head[2:].partition("=")[0] for name in self.takes.long_values)
            if head.startswith("--")
            else head[1:2] in self.takes.values and head[1:2] != ""
        )
        if not harmless:
            self.named.files.append((word, self.below))


def _of_any_program(name: str, words: Sequence[Word]) -> Named:
    named = Named(
        moves=name != "grep" and any(word.text is not None and _MOVING.fullmatch(word.text) for word in words)
    )
    only_operands = False
    operands: list[Word] = []
    for word in words:
        if word.text == "--" and not only_operands:
            only_operands = True
            continue
        named.files += [(each, True) for each in _candidates(word, only_operands=only_operands)]
        if only_operands or not word.may_be_option:
            operands.append(word)
    if name in _INTO:
        ends = [word.text for word in operands if word.text]
        for into in ends:  # whichever is the directory: the last, or the one behind -t
            inner = [f"{into}/{posixpath.basename(start.rstrip('/'))}" for start in ends if start != into]
            named.files += [(literal(path), False) for path in inner]
    if any(
        _LISTING.fullmatch(word.text or "") and (name in _LISTERS or not (word.text or "").startswith("-T"))
        for word in words
    ):
        named.doubt = f"{name} reads the names of files"
    return named


def _candidates(word: Word, *, only_operands: bool = False) -> list[Word]:
    """Every part of a word that may be a path."""
    text = word.text
    if text is None:
        return [word]
    if _WEB.match(text) or not text:
        return []
    if text.startswith("file://"):
        return [literal(text.removeprefix("file://").removeprefix("localhost"))]
    if text.startswith("--") and not only_operands:
        value = text.partition("=")[2]
        return _candidates(literal(value)) if value else []
    if text.startswith("-") and not only_operands:
        letters = len(text) - len(text[1:].lstrip(ascii_letters))  # any of them may be an option with a value behind it
        starts = [*range(2, min(max(letters, 2), CLUSTER_MAX) + 1), *([text.index("/")] if "/" in text else [])]
        values = [text[start:] for start in dict.fromkeys(starts) if text[start:]]
        return [each for value in values for each in _candidates(literal(value), only_operands=True)]
    found = [text, *(part for part in re.split(r"[=:,@]", text) if part)]
    if not re.fullmatch(r"[\w.~/+-]+", text, re.ASCII) and "/" in text:
        found.append(text[text.index("/") :])
    return [literal(part) for part in dict.fromkeys(found)]


def _opened_after_all(name: str, words: Sequence[Word]) -> Named:
    letters = _OPENED_AFTER_ALL.get(name, "")
    named = Named()
    for index, word in enumerate(words if letters else ()):
        text = word.text if word.text is not None else word.prefix
        if word.may_be_option and (not text or text.startswith("--") or (set(letters) & set(text[1:]))):
            opens = not text.startswith("--") or re.match(r"--(?:f|re)", text)
            named.files += [
                (each, False) for each in (_candidates(word) + list(words[index + 1 : index + 2]) if opens else ())
            ]
    return named


def _looks_at_links(words: Sequence[Word]) -> bool:
    """Whether ls shows a link itself, and not what it leads to."""
    short = [
        word.text or word.prefix
        for word in words
        if word.may_be_option and not (word.text or word.prefix).startswith("--")
    ]
    long = [
        word.text or word.prefix for word in words if word.may_be_option and (word.text or word.prefix).startswith("--")
    ]
    follows = any(set("LH") & set(letters) for letters in short) or any(option.startswith("--d") for option in long)
    return not follows and any(set("ld") & set(letters) for letters in short)


def _follows_links_below(words: Sequence[Word]) -> bool:
    options = [word.text if word.text is not None else word.prefix for word in words if word.may_be_option]
    deep = any("--recursive".startswith(text) if text.startswith("--") else "r" in text for text in options)
    return deep and "--no-dereference" not in options


def _in_place(words: Sequence[Word]) -> bool:
    return any(
        word.text is None or re.match(r"-[nErsuz]*i|--in-place", word.text) for word in words if word.may_be_option
    )


def entered(moves: Sequence[tuple[str, Sequence[Word]]]) -> Sequence[str] | None:
    """The directories from which relative paths may start, of a command that changes its own so often: before it does, and
    after. None where that cannot be told."""
    if not moves:
        return ("",)
    name, words = moves[0]
    directory = words[0].text if len(words) == 1 else None
    if len(moves) > 1 or name != "cd" or not directory or directory.startswith("-") or ".." in directory.split("/"):
        return None
    return "", f"{directory}/"


def located(
    files: Iterable[tuple[Word, bool]], variables: Mapping[str, Sequence[Word] | None], starts: Sequence[str] | None
) -> tuple[tuple[FileArgument, ...], bool]:
    """The files as they can be looked up before the command runs, and whether these are all. `variables` are all values that
    the command itself gives to each, None where they cannot be told; `starts` the directories that relative paths start from."""
    found: dict[FileArgument, None] = {}
    certain = True
    for word, below in files:
        for value in _values(word, variables):
            for one in _arguments(value, below) or (None,) if value.text != "" else ():
                if one is None:
                    certain = certain and _is_stream(value)
                elif one.text.startswith(("/", "~")):
                    found[one] = None
                elif starts is None or any(_OF_A_PROCESS.search(start + one.text) for start in starts):
                    certain = False
                else:
                    found.update(
                        (replace(one, text=(escape(start) if one.glob else start) + one.text), None) for start in starts
                    )
        if len(found) > FILES_MAX:
            return tuple(found)[:FILES_MAX], False
    return tuple(found), certain


def _values(word: Word, variables: Mapping[str, Sequence[Word] | None]) -> Sequence[Word]:
    """What the word may be: itself, or every value of the variable that it is; an uncertain word where that cannot be told."""
    if word.text is not None or word.variable is None:
        return [word]
    values = variables.get(word.variable)
    if values is None or any(
        value.variable is not None or (word.splits and (value.text is None or _SPLITS.search(value.text)))
        for value in values
    ):
        return [Word(None)]
    return values


def _is_stream(word: Word) -> bool:
    return word == PIPE or word.text in _STREAMS


def _arguments(word: Word, below: bool) -> tuple[FileArgument, ...] | None:
    """The files that a word names; None where that cannot be told."""
    if word.below and not word.linked:
        return tuple(FileArgument(start, below=True) for start in word.below)
    text = word.glob if word.text is None else word.text
    if _is_stream(word) or text is None or "\0" in text or _OF_A_PROCESS.search(text):
        return None
    if below and _PROCESSES.fullmatch(text):
        return None
    if word.text is not None:
        return (FileArgument(text, below=below),)
    return None if _HIDDEN_GLOB.search(text) else (FileArgument(text, glob=True, below=below),)
