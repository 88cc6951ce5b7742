"""Which files a command really executes: the program, its interpreter, the script it is given, programs behind wrappers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perdure.daemon.tools.digests import executed_digest
from perdure.daemon.tools.model import ToolRefused

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEPTH_MAX = 5
_SHELL_WORDS_MAX = 200
_SHEBANG_BYTES = 256

_INTERPRETERS = (
    "python",
    "pypy",
    "bash",
    "sh",
    "dash",
    "zsh",
    "ksh",
    "perl",
    "ruby",
    "node",
    "php",
    "lua",
    "Rscript",
    "tclsh",
    "expect",
)
_SCRIPT_OPTIONS = {"awk": "-f", "gawk": "-f", "mawk": "-f", "sed": "-f", "make": "-f"}
_INLINE_CODE = frozenset({"-c", "-e", "-E", "-m", "--eval", "-r"})
_WRAPPERS = frozenset(
    [
        "env",
        "nice",
        "ionice",
        "nohup",
        "timeout",
        "setsid",
        "stdbuf",
        "time",
        "chrt",
        "taskset",
        "xargs",
        "watch",
        "sudo",
        "doas",
        "busybox",
        "unbuffer",
        "strace",
        "flock",
        "runuser",
        "setpriv",
    ]
)


@dataclass(slots=True)
class Executed:
    """What a command executes: `program` is the file to start, `files` maps each executed file (links followed) to its
    SHA-256, `found_as` lists the paths by which they were found."""

    program: Path
    files: dict[str, str] = field(default_factory=dict)
    found_as: list[Path] = field(default_factory=list)


def executed_by(argv: Sequence[str], *, search_path: str, cwd: Path) -> Executed:
    """Resolve `argv` as execvp would. Raises ToolRefused where there is no such program."""
    program = find(argv[0], search_path=search_path, cwd=cwd)
    if program is None:
        raise ToolRefused(
            "run",
            repr(argv[0])[:200],
            f"there is no such program in {search_path}",
            "Name an installed program, or its path",
        )
    executed = Executed(program)
    _add(executed, program, search_path, cwd)
    _add_arguments(executed, Path(argv[0]).name, argv[1:], search_path, cwd, _DEPTH_MAX)
    return executed


def executed_by_shell(shell: Path, script: str, *, search_path: str, cwd: Path) -> Executed:
    """The shell itself, and every word of the script that names a program or an executable file. What a script makes up
    only while it runs is not seen here: the policies' analysis of the script and the sandbox are for that."""
    executed = Executed(shell)
    _add(executed, shell, search_path, cwd)
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.commenters = ""
    words: list[str] = []
    try:
        for word in lexer:
            words.append(word)
            if len(words) >= _SHELL_WORDS_MAX:
                break
    except ValueError:
        pass  # an open quote: the shell will say so
    for index, word in enumerate(words):
        found = find(word, search_path=search_path, cwd=cwd)
        if found is not None:
            _add(executed, found, search_path, cwd)
            _add_arguments(executed, Path(word).name, words[index + 1 :], search_path, cwd, 1)
    return executed


def find(name: str, *, search_path: str, cwd: Path) -> Path | None:
    """The executable file that `name` means: by path relative to `cwd`, or in `search_path`."""
    if not name:
        return None
    places = (
        [cwd / name]
        if "/" in name
        else [Path(directory) / name for directory in search_path.split(":") if directory.startswith("/")]
    )
    for place in places:
        try:
            if place.is_file() and os.access(place, os.X_OK):
                return Path(os.path.abspath(place))  # noqa: PTH100 - links stay: a virtual environment is found by the path it is called by
        except (OSError, ValueError):
            continue
    return None


def _add(executed: Executed, path: Path, search_path: str, cwd: Path, depth: int = _DEPTH_MAX) -> None:
    real = Path(os.path.realpath(path))
    if str(real) in executed.files or depth == 0:
        return
    try:
        executed.files[str(real)] = executed_digest(real)
        with real.open("rb") as file:
            first = file.read(_SHEBANG_BYTES)
    except OSError as error:
        raise ToolRefused(
            "run", str(real), f"it cannot be read: {error.strerror}", "Its digest must be known before it may run"
        ) from None
    executed.found_as.append(path)
    if first.startswith(b"#!"):
        words = first[2:].split(b"\n")[0].decode(errors="replace").split()
        for word in words[:1] if not words or Path(words[0]).name != "env" else words:
            interpreter = find(word, search_path=search_path, cwd=cwd)
            if interpreter is not None:
                _add(executed, interpreter, search_path, cwd, depth - 1)


def _add_arguments(executed: Executed, name: str, rest: Sequence[str], search_path: str, cwd: Path, depth: int) -> None:
    if depth == 0:
        return
    if name in _WRAPPERS:
        for index, word in enumerate(rest):
            found = None if word.startswith("-") or "=" in word else find(word, search_path=search_path, cwd=cwd)
            if found is not None:
                _add(executed, found, search_path, cwd)
                _add_arguments(executed, Path(word).name, rest[index + 1 :], search_path, cwd, depth - 1)
                return
    for script in _scripts(name, rest):
        path = cwd / script
        if path.is_file():
            _add(executed, path, search_path, cwd)


def _scripts(name: str, rest: Sequence[str]) -> Iterator[str]:
    if (option := _SCRIPT_OPTIONS.get(name)) is not None:
        for index, word in enumerate(rest):
            if word == option and index + 1 < len(rest):
                yield rest[index + 1]
            elif word.startswith(option) and len(word) > len(option):
                yield word[len(option) :]
        return
    if name.rstrip("0123456789.") not in _INTERPRETERS:
        return
    for word in rest:
        if word in _INLINE_CODE:
            return
        if not word.startswith("-"):
            yield word
            return


def prefixes(executed: Executed, *, never: Sequence[Path]) -> list[Path]:
    """Installation prefixes that interpreters outside the system directories need (`PREFIX/bin/NAME` beside `PREFIX/lib`),
    unless one holds or is something of `never`."""
    found: set[Path] = set()
    for path in (*executed.found_as, *map(Path, executed.files)):
        prefix = path.parent.parent
        is_one = path.parent.name in {"bin", "sbin"} and prefix != Path("/") and (prefix / "lib").is_dir()
        if is_one and not any(other.is_relative_to(prefix) for other in (*never, Path.home())):
            found.add(prefix)
    return sorted(found)


def search_path(environment: Mapping[str, str]) -> str:
    """The PATH of an environment, or the system's usual one."""
    return environment.get("PATH") or DEFAULT_PATH
