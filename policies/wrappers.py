"""Programs that run other programs: which words of theirs are the command that really runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perdure.policies.hazards import is_safe_variable
from perdure.policies.words import UNCERTAIN, Word


@dataclass(frozen=True, slots=True)
class Wrapper:
    """Its options without a value, with one, their long forms, and how many operands stand before the command."""

    flags: str = ""
    values: str = ""
    long_flags: tuple[str, ...] = ()
    long_values: tuple[str, ...] = ()
    operands: int = 0
    numbers: bool = False  # takes `-5` as an option
    assignments: bool = False  # takes NAME=VALUE before the command


WRAPPERS: Mapping[str, Wrapper] = {
    "nohup": Wrapper(),
    "setsid": Wrapper("cfw", "", ("ctty", "fork", "wait")),
    "nice": Wrapper("", "n", (), ("adjustment",), numbers=True),
    "ionice": Wrapper("t", "cn", ("ignore",), ("class", "classdata")),
    "timeout": Wrapper("v", "sk", ("preserve-status", "foreground", "verbose"), ("signal", "kill-after"), operands=1),
    "stdbuf": Wrapper("", "ioe", (), ("input", "output", "error")),
    "taskset": Wrapper("ac", "", ("all-tasks", "cpu-list"), operands=1),
    "chrt": Wrapper("abfior", "", ("batch", "fifo", "idle", "other", "rr"), operands=1),
    "chroot": Wrapper("", "", (), ("userspec", "groups"), operands=1),
    "time": Wrapper("pv", "", ("portability", "verbose")),
    "env": Wrapper("i0v", "uC", ("ignore-environment", "null", "debug"), ("unset", "chdir"), assignments=True),
    "sudo": Wrapper(
        "AbEHknPS",
        "ugpCrt",
        ("non-interactive", "preserve-env", "set-home", "background"),
        ("user", "group", "prompt"),
        assignments=True,
    ),
    "doas": Wrapper("n", "u"),
    "pkexec": Wrapper("", "", ("disable-internal-agent",), ("user",)),
    "command": Wrapper("p"),
    "builtin": Wrapper(),
    "exec": Wrapper("cl", "a"),
    "busybox": Wrapper(),
    "toybox": Wrapper(),
    "eatmydata": Wrapper(),
    "unbuffer": Wrapper("p"),
    "xargs": Wrapper(
        "0rtpxo",
        "adEInLPsi",
        ("null", "no-run-if-empty", "verbose", "interactive", "exit", "open-tty"),
        (
            "arg-file",
            "delimiter",
            "eof",
            "replace",
            "max-args",
            "max-lines",
            "max-procs",
            "max-chars",
            "process-slot-var",
        ),
    ),
    "flock": Wrapper(
        "sxeunoF",
        "wE",
        ("shared", "exclusive", "unlock", "nonblock", "close", "no-fork", "verbose"),
        ("timeout", "conflict-exit-code"),
        operands=1,
    ),
}

# They run something that no argument list shows: another shell's words, a session, a schedule, a recording, a debugger.
OPAQUE = frozenset(
    [
        "su",
        "runuser",
        "parallel",
        "script",
        "scriptreplay",
        "expect",
        "screen",
        "tmux",
        "at",
        "batch",
        "strace",
        "ltrace",
        "gdb",
        "lldb",
        "perf",
        "valgrind",
        "unshare",
        "nsenter",
        "systemd-run",
        "systemd-inhibit",
        "machinectl",
        "dbus-run-session",
        "xvfb-run",
        "fakeroot",
        "proot",
        "bwrap",
        "firejail",
        "runc",
        "crun",
        "ctr",
        "setarch",
        "linux32",
        "linux64",
        "setpriv",
        "capsh",
        "start-stop-daemon",
        "daemonize",
        "run-parts",
        "logrotate",
        "socat",
        "nc",
        "ncat",
        "netcat",
        "telnet",
        "ftp",
        "sftp",
        "lftp",
        "rsh",
        "rlogin",
        "source",
        ".",
        "eval",
        "coproc",
        "fc",
        "entr",
        "inotifywait",
        "incrontab",
        "rlwrap",
        "chpst",
        "softlimit",
        "envdir",
        "setlock",
        "s6-setuidgid",
        "gosu",
        "tini",
        "dumb-init",
        "watchexec",
        "nodemon",
        "pm2",
        "supervisorctl",
        "ansible",
        "salt",
        "fab",
        "mosh",
        "cpulimit",
        "prlimit",
        "choom",
        "numactl",
        "hyperfine",
        "sg",
        "newgrp",
        "torsocks",
        "proxychains",
        "proxychains4",
        "tsocks",
        "ld.so",
        "certbot",
        "composer",
        "rake",
        "gulp",
        "grunt",
        "tclsh",
        "wish",
    ]
)

INTERPRETER = re.compile(
    r"(?:python|pypy|perl|ruby|node|nodejs|php|lua|luajit|tclsh|wish|pwsh|Rscript|R|deno|bun|jshell|irb|ipython|guile|scheme|racket"
    r"|julia|octave|scala|groovy|swift|java|erl|elixir|ghci|runghc|ocaml|dc|bc|m4|osascript|psql|mysql|sqlite|sqlite3|redis-cli|mongo|mongosh)[0-9.]*"
)
SHELL = re.compile(r"(?:ba|da|z|k|mk|a|c|tc|fi|r|pdk|yas)?sh|rbash|rzsh|busybox-sh")
_HARMLESS_INTERPRETER = frozenset({"--version", "-V", "--help", "-version"})


def command_within(name: str, words: Sequence[Word]) -> list[Word] | str | None:
    """The words of the command that the wrapper `name` runs; None where it runs none; in words why that cannot be told."""
    wrapper = WRAPPERS[name]
    position = 0
    replaced: str | None = None
    while position < len(words):
        word = words[position]
        if word.text == "--":
            position += 1
            break
        if not word.may_be_option:
            break
        if word.text is None:
            return f"{name} may be given an option by what the shell expands"
        taken = _option(name, wrapper, word.text)
        if taken is None:
            return f"{name} {word.text}"
        if name == "command" and word.text in {"-v", "-V"}:
            return None
        if name == "xargs" and (found := _replacement(word.text, words[position + 1 : position + 2])) is not None:
            replaced = found
        position += taken
    while wrapper.assignments and position < len(words) and (assigned := _assignment(words[position])) is not None:
        if not is_safe_variable(assigned):
            return f"{name} sets {assigned or 'what the shell expands'}"
        position += 1
    for _ in range(wrapper.operands):
        if position < len(words) and words[position].may_be_option:
            return f"{name} may be given an option by what the shell expands"
        position += 1
    rest = list(words[position:])
    if name == "xargs":
        return _fed(rest, replaced)
    if name == "flock" and any(word.text in {"-c", "--command"} for word in rest):
        return "flock -c"
    return rest or None


def _option(name: str, wrapper: Wrapper, text: str) -> int | None:
    """How many words the option takes; None where it is not one of the plain ones."""
    if text.startswith("--"):
        option, equals, _ = text[2:].partition("=")
        if option in wrapper.long_values:
            return 1 if equals or (name == "xargs" and option in {"eof", "replace", "max-lines"}) else 2
        return 1 if option in wrapper.long_flags and (not equals or option == "preserve-env") else None
    if wrapper.numbers and re.fullmatch(r"-[-+]?[0-9]+", text):
        return 1
    if name == "command" and text in {"-v", "-V"}:
        return 1
    for index, letter in enumerate(text[1:], start=1):
        if letter in wrapper.values:
            if name == "xargs" and letter == "i":
                return 1
            return 1 if index < len(text) - 1 else 2
        if letter not in wrapper.flags:
            return None
    return 1 if len(text) > 1 else None


def _assignment(word: Word) -> str | None:
    """The name that `NAME=VALUE` sets; empty where it is not certain; None where the word is no assignment."""
    known = word.text if word.text is not None else word.prefix
    name, equals, _ = known.partition("=")
    if equals:
        return name
    return "" if word.text is None and not word.prefix.startswith(("/", ".")) else None


def _replacement(text: str, following: Sequence[Word]) -> str | None:
    if text.startswith("--replace"):
        return text.partition("=")[2] or "{}"
    found = re.match(r"-[0rtpxo]*([Ii])(.*)", text, re.DOTALL)
    if not found:
        return None
    if found[2]:
        return found[2]
    return "{}" if found[1] == "i" else (following[0].text if following and following[0].text else "")


def _fed(rest: list[Word], replaced: str | None) -> list[Word] | str | None:
    """xargs: what comes in is appended as further words, or stands where the replacement stood."""
    if not rest:
        return None  # echo
    if replaced is None:
        return [*rest, UNCERTAIN]
    if not replaced:
        return "xargs -I with what the shell expands"
    return [
        word if word.text is None or replaced not in word.text else Word(None, word.text[: word.text.index(replaced)])
        for word in rest
    ]


def run_by_interpreter(name: str, words: Sequence[Word]) -> str | None | tuple[str, ...]:
    """What an interpreter runs: a tuple of one script's path, an empty tuple for nothing, or in words why it is not known."""
    if not words:
        return f"{name} runs what it reads"
    first = words[0]
    if len(words) == 1 and first.text in _HARMLESS_INTERPRETER:
        return ()
    if first.text is None or first.text.startswith("-") or not first.text:
        return f"{name} with code or options of its own"
    if name in {
        "dc",
        "bc",
        "m4",
        "psql",
        "mysql",
        "sqlite",
        "sqlite3",
        "java",
        "swift",
        "scala",
        "redis-cli",
        "mongo",
        "mongosh",
        "deno",
        "bun",
        "R",
    }:
        return f"{name} runs what it reads"
    return (first.text if "/" in first.text else f"./{first.text}",)
