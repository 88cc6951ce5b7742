"""What the words of everyday programs are, where they are no files: options with values, patterns, scripts, numbers.

The list follows the manuals. What is not certain is left out of it: a word too many that counts as a file does no harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Takes:
    """The words that a program takes.

    `values`, `long_values`: options whose value is never a file; `attached`: those whose value never is the next word; `files`:
    letters whose value is a file; `long_files`: names of options whose value, the next word, is one; `lists`: options by which it
    finds files that no word names; `lead`: operands before the first file, which are not there beside one of the options `led`;
    `below`: options (True: without any) with which it goes below directories; `default`: what it looks at when no word says."""

    values: str = ""
    long_values: tuple[str, ...] = ()
    files: str = ""
    long_files: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    lead: int = 0
    led: tuple[str, ...] = ()
    below: tuple[str, ...] | bool = False
    default: str | None = None
    attached: str = ""


_AROUND = ("max-count", "after-context", "before-context", "context", "color", "regexp")
_GREP = Takes(
    "eABCDdm",
    (*_AROUND, "colour", "include", "exclude", "exclude-dir", "label", "devices", "directories", "binary-files"),
    "f",
    ("exclude-from",),
    lists=("-R", "--dereference-recursive"),
    lead=1,
    led=("-e", "-f", "--regexp", "--file"),
    below=("-r", "--recursive", "-d", "--directories"),
    default=".",
)
_RG = Takes(
    "egtTmABCMjrE",
    (*_AROUND, "glob", "iglob", "type", "type-not", "colors", "replace", "sort", "sortr", "max-depth", "threads"),
    "f",
    ("ignore-file",),
    lists=("-L", "--follow"),
    lead=1,
    led=("-e", "-f", "--regexp", "--file", "--files"),
    below=True,
    default=".",
)
_AWK = Takes("Fv", ("field-separator", "assign"), "f", lead=1, led=("-f", "--file"))
_SED = Takes("el", ("expression", "line-length"), "f", lead=1, led=("-e", "-f", "--expression", "--file"), attached="i")
_SORT = Takes("kSt", ("key", "buffer-size", "field-separator", "sort"), "oT", lists=("--files0-from",))
# Of two directories diff compares what is in both.
_DIFF = Takes("UCWFIxL", ("unified", "context", "width", "exclude", "label"), "X", below=True)
_LS = Takes("ITw", ("ignore", "hide", "time-style", "time", "sort", "color", "format", "width"), default=".")
_DU = Takes("dBt", ("max-depth", "block-size", "threshold", "exclude"), "X", lists=("--files0-from",), default=".")
_LINES = ("lines", "bytes")
_OWNED = Takes(lead=1, led=("--reference",), below=("-R", "--recursive"))
AWKS = ("awk", "gawk", "mawk", "nawk", "original-awk")

TAKES: Mapping[str, Takes] = {
    **dict.fromkeys(("cat", "rev", "cmp", "comm", "zcat", "bzcat", "readlink", "realpath", "lsattr"), Takes()),
    "xzcat": Takes(lists=("--files", "--files0")),
    **dict.fromkeys(("cd", "pushd", "getfacl", "cksum", "expand", "unexpand", "rmdir", "unlink", "tee"), Takes()),
    **dict.fromkeys(("md5sum", "sha1sum", "sha256sum", "sha512sum", "b2sum"), Takes(lists=("-c", "--check"))),
    **dict.fromkeys(("grep", "egrep", "fgrep", "zgrep"), _GREP),
    **dict.fromkeys(AWKS, _AWK),
    **dict.fromkeys(("sed", "gsed"), _SED),
    **dict.fromkeys(("chmod", "chown", "chgrp"), _OWNED),
    **dict.fromkeys(("base64", "base32", "fold"), Takes("w", ("wrap", "width"))),
    "rg": _RG,
    "sort": _SORT,
    "diff": _DIFF,
    "ls": _LS,
    "du": _DU,
    "mkdir": Takes("m", ("mode",)),
    "touch": Takes("dt", ("date", "time"), "r"),
    "tac": Takes("s", ("separator",)),
    "nl": Takes("bdfhilnsvw"),
    "head": Takes("nc", _LINES),
    "tail": Takes("ncs", (*_LINES, "pid", "sleep-interval")),
    "wc": Takes(lists=("--files0-from",)),
    "cut": Takes("bcdf", ("bytes", "characters", "delimiter", "fields", "output-delimiter")),
    "uniq": Takes("fsw", ("skip-fields", "skip-chars", "check-chars")),
    "join": Takes("aejotv12"),
    "paste": Takes("d", ("delimiters",)),
    "column": Takes("csoNRTHWEO", ("output-width", "separator", "output-separator", "table-columns")),
    "fmt": Takes("wpg", ("width", "goal", "prefix")),
    "od": Takes("AjNSt"),
    "hexdump": Takes("nse", files="f"),
    "xxd": Takes("clogs"),
    "strings": Takes("nte"),
    "file": Takes("FeP", ("separator", "exclude"), "m", lists=("-f", "--files-from")),
    "stat": Takes("c", ("format", "printf")),
    "df": Takes("txB", ("type", "exclude-type", "block-size", "output")),
    "tree": Takes("LPI", ("charset", "filelimit", "timefmt", "sort"), "o", default="."),
    "jq": Takes(files="fL", lead=1, led=("-f", "--from-file")),
}

# Whose words are never opened: text that they print, numbers, names of users, services and processes.
NO_FILES = frozenset(
    """echo printf true false : test seq sleep wait break continue exit return read set tr type which basename dirname pwd export
    unset local shift uptime free uname arch cal nproc id groups whoami locale printenv ps pgrep pkill kill pidof pstree top w
    lastlog vmstat mpstat pidstat netstat lsmod date hostname""".split()  # noqa: SIM905 (one word a line would be a page)
)
