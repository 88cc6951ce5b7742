"""Options by which harmless-looking programs write files or run other programs. What is not listed here is as its operator
allows it; what is listed is certain only without these options. The list follows the manuals and GTFOBins' findings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from perdure.policies.inline_code import awk_is_plain, sed_is_plain
from perdure.policies.looking import FORMS
from perdure.policies.words import Word


@dataclass(frozen=True, slots=True)
class Hazards:
    """`short`: letters of options; `long`: names of options (an abbreviation of one counts as it); `operands_max`: more
    operands than that and the program writes to one or sets something."""

    short: str = ""
    long: tuple[str, ...] = ()
    operands_max: int | None = None


_EDITOR = Hazards(operands_max=-1)  # an editor or pager runs commands at a key's touch

HAZARDS: Mapping[str, Hazards] = {
    "sort": Hazards("oT", ("output", "compress-program", "temporary-directory")),
    "uniq": Hazards(operands_max=1),
    "xxd": Hazards("r", ("revert",), operands_max=1),
    "shuf": Hazards("o", ("output",)),
    "split": Hazards("", ("filter",)),
    "file": Hazards("Cm", ("compile", "magic-file")),
    "date": Hazards("s", ("set",), operands_max=1),
    "hostname": Hazards("Fb", ("file", "boot"), operands_max=0),
    "dmesg": Hazards("cCDEn", ("clear", "read-clear", "console-off", "console-on", "console-level")),
    "journalctl": Hazards(
        "M",
        (
            "vacuum-size",
            "vacuum-time",
            "vacuum-files",
            "rotate",
            "flush",
            "sync",
            "relinquish-var",
            "smart-relinquish-var",
            "setup-keys",
            "update-catalog",
            "cursor-file",
            "machine",
            "root",
            "image",
        ),
    ),
    # -H goes to another machine by ssh
    **dict.fromkeys(
        ("systemctl", "loginctl", "timedatectl", "hostnamectl", "resolvectl", "localectl"),
        Hazards("HM", ("host", "machine", "root", "image")),
    ),
    "dpkg": Hazards("", ("pre-invoke", "post-invoke", "status-logger", "admindir", "root", "instdir", "log")),
    "dpkg-query": Hazards("", ("admindir", "root")),
    "ss": Hazards("KD", ("kill", "diag")),
    "sar": Hazards("o"),
    "tree": Hazards("oR"),
    "zip": Hazards("TO", ("unzip-command", "test", "out", "output-file")),
    "unzip": Hazards(operands_max=-1),
    "rg": Hazards(
        "z",
        ("pre", "pre-glob", "hostname-bin", "search-zip", "ignore-file"),  # what it cannot read there it prints
    ),
    "ag": Hazards("", ("pager",)),
    "ack": Hazards("", ("pager", "ackrc", "output")),
    "fd": Hazards("xX", ("exec", "exec-batch")),
    "fdfind": Hazards("xX", ("exec", "exec-batch")),
    "yq": Hazards("is", ("inplace", "in-place", "split-exp")),
    "jq": Hazards("fL", ("from-file", "library-path", "run-tests")),
    "curl": Hazards(
        "oOKTJDcF",
        (
            "output",
            "remote-name",
            "remote-name-all",
            "config",
            "upload-file",
            "dump-header",
            "cookie-jar",
            "form",
            "output-dir",
            "trace",
            "trace-ascii",
            "stderr",
            "etag-save",
            "hsts",
            "alt-svc",
            "netrc-file",
            "libcurl",
            "engine",
            "egd-file",
        ),
    ),
    "wget": Hazards(
        "oOaPixe",
        (
            "output-file",
            "output-document",
            "append-output",
            "directory-prefix",
            "input-file",
            "execute",
            "use-askpass",
            "config",
            "save-cookies",
            "warc-file",
            "post-file",
            "body-file",
        ),
        operands_max=0,
    ),
    "ping": Hazards("f", operands_max=None),
    "nmap": Hazards("o", ("script", "datadir", "servicedb", "versiondb", "stylesheet", "resume", "interactive", "iL")),
    "tcpdump": Hazards("zwWGCFr", ("postrotate-command",)),
    "rsync": Hazards("e", ("rsh", "rsync-path", "log-file", "password-file", "config")),
    "scp": Hazards("SoF"),
    "openssl": Hazards(operands_max=1),
    "man": Hazards("PHCM", ("pager", "html", "config-file", "manpath")),
    "git": Hazards(
        "",
        (
            "exec-path",
            "paginate",
            "git-dir",
            "work-tree",
            "namespace",
            "config-env",
            "super-prefix",
            "output",
            "ext-diff",
            "textconv",
            "open-files-in-pager",
            "upload-pack",
            "receive-pack",
            "exec",
            "contents",
            "show-signature",
            "help",  # starts `man`, or what the configuration names
        ),
    ),
    "docker": Hazards("H", ("host", "config", "context", "tlscacert", "tlscert", "tlskey")),
    "kubectl": Hazards(
        "s", ("kubeconfig", "as", "as-group", "token", "server", "cache-dir", "profile", "profile-output")
    ),
    "make": Hazards("", ("eval",)),
    "cp": Hazards("S", ("suffix",)),
    "install": Hazards("s", ("strip-program",)),
    "logger": Hazards("nPu", ("server", "port", "socket")),
    "ldd": Hazards(operands_max=-1),  # may run the file that it looks at
    "nft": Hazards("fi", ("file", "interactive")),
    "sysctl": Hazards("wpaf", ("write", "load", "system")),
    "mount": Hazards(operands_max=0),
    "crontab": Hazards("er", operands_max=0),
    "lsof": Hazards("D"),
    "pidstat": Hazards("e"),
    "lastlog": Hazards("CSR", ("clear", "set", "root")),
    "pmap": Hazards("nN", ("create-rc", "create-rc-to")),
    "lspci": Hazards("qQ"),  # asks a name server
    "rpm": Hazards(
        "EDr",
        ("pipe", "eval", "define", "undefine", "predefine", "macros", "load", "rcfile", "root", "dbpath", "specfile"),
    ),
    **dict.fromkeys(("apt", "apt-cache", "apt-get"), Hazards("oc", ("option", "config-file"))),
    **dict.fromkeys(
        (
            "less",
            "more",
            "most",
            "vi",
            "vim",
            "nvim",
            "view",
            "vimdiff",
            "ex",
            "ed",
            "emacs",
            "nano",
            "pico",
            "joe",
            "mc",
        ),
        _EDITOR,
    ),
}


# What goes with `systemctl --failed` where nothing but a list is asked for.
_SHOWING = frozenset(
    {"--failed", "--no-pager", "--no-legend", "--all", "-a", "--full", "-l", "--plain", "--quiet", "-q", "list-units"}
)


def doubts(name: str, words: Sequence[Word]) -> str | None:
    """Why it is not certain that the program `name` only does what its name says, with these arguments; None where it is."""
    if name in {"alias", "unalias", "function"}:
        return f"{name} changes what later words mean"
    if name in {"awk", "gawk", "mawk", "nawk", "original-awk"}:
        return _awk(words)
    if name in {"sed", "gsed"}:
        return _sed(words)
    if name == "read":
        return _names(words, "prsuidntNea", "read")
    if name in {
        "mapfile",
        "readarray",
        "let",
        "enable",
        "complete",
        "compgen",
        "bind",
        "fc",
        "hash",
        "ulimit",
        "umask",
        "shopt",
    }:
        return f"{name} changes how the shell reads what follows" if words else None
    if name == "printf" and any(word.may_be_option and word.text != "--" and _letter(word, "v") for word in words[:1]):
        return "printf -v assigns to whatever it is told"
    if name == "set":
        certain = all(
            word.text is not None and re.fullmatch(r"[-+][eu]+o?|[-+]o|pipefail|errexit|nounset", word.text)
            for word in words
        )
        return None if certain else "set changes how the shell reads what follows"
    if name == "ip":
        return _ip(words)
    if name in FORMS and (reason := FORMS[name](words)):
        return reason
    if name == "test" and any(word.text in {"-v", "-R"} for word in words):
        return "test -v evaluates what stands in brackets"
    if name == "wait" and any(word.may_be_option and _letter(word, "p") for word in words):
        return "wait -p assigns to whatever it is told"
    options = [word.text for word in takewhile(lambda word: word.may_be_option, words)]
    if name == "systemctl" and "--failed" in options and not all(word.text in _SHOWING for word in words):
        return "systemctl --failed with a command behind it"
    hazards = HAZARDS.get(name)
    return _hazard(name, hazards, words) if hazards else None


def _hazard(name: str, hazards: Hazards, words: Sequence[Word]) -> str | None:
    operands = 0
    only_operands = False
    for word in words:
        if not only_operands and word.text == "--":
            only_operands = True
        elif not only_operands and word.may_be_option:
            if word.text is None and not word.prefix.startswith("-"):
                return f"{name} may be given an option by what the shell expands"
            found = _option(hazards, word.text if word.text is not None else word.prefix, certain=word.text is not None)
            if found:
                return f"{name} {found}"
        else:
            operands += 0 if name == "date" and (word.text or word.prefix).startswith("+") else 1
    limit = hazards.operands_max
    if limit is None:
        return None
    if name == "date":
        return (
            f"{name} sets the clock"
            if operands and not any(word.text in {"-d", "-r", "-f"} for word in words)
            else None
        )
    return f"{name} with {operands} operands" if operands > limit else None


def _option(hazards: Hazards, text: str, *, certain: bool) -> str | None:
    """The dangerous option that `text` is, may be, or contains."""
    if text.startswith("--"):
        given = text[2:].partition("=")[0]
        for name in hazards.long:
            if name.startswith(given) if certain or "=" in text else name.startswith(given) or given.startswith(name):
                return f"--{name}"
        return None
    letters = text[1:]
    if not certain and not letters:
        return text
    name = letters.partition("=")[0]
    if name in hazards.long:
        return text
    return text if any(letter in hazards.short for letter in _cluster(letters)) else None


def _cluster(letters: str) -> str:
    """The letters of `-abc`. A value may follow one of them; taking it for letters too errs on the safe side, except for
    digits and signs, which are never options here."""
    found = re.match(r"[A-Za-z]*", letters)
    return found[0] if found else ""


def _ip(words: Sequence[Word]) -> str | None:
    """ip abbreviates everything it can, so only the plain words for looking are certain."""
    operands = [
        word.text
        for word in words
        if word.text is None
        or not re.fullmatch(r"-(?:4|6|s|d|j|p|o|c|br|brief|json|details|stats|color(?:=\w+)?)", word.text)
    ]
    looks = len(operands) < 2 or operands[1] in {"show", "list", "ls", "get"}
    certain = all(text is not None and not text.startswith("-") for text in operands)
    return None if certain and looks and operands else "ip may change what it shows"


def _letter(word: Word, letter: str) -> bool:
    return word.text is None or letter in word.text


def _names(words: Sequence[Word], options: str, name: str) -> str | None:
    """`read x y`: every word an option of the plain kind or a variable that nothing else uses."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.text is None:
            return f"{name} into what the shell expands"
        elif word.text.startswith("-"):
            if not set(word.text[1:]) <= set(options):
                return f"{name} {word.text}"
            skip = word.text[-1] in "pdntNu" and word.text != "-"
            if word.text[-1] == "a":
                return f"{name} into an array"
        elif not is_safe_variable(word.text):
            return f"{name} into {word.text}"
    return None


_SAFE_VARIABLE = re.compile(
    r"[a-z_][a-z0-9_]*|LC_[A-Z]+|LANG|LANGUAGE|TZ|COLUMNS|LINES|NO_COLOR|SYSTEMD_COLORS|FILE|DIR|LOG|NAME|HOST|COUNT|OUT|LINE|DATE|TODAY|NOW|DAY|[A-Z]"
)


def is_safe_variable(name: str) -> bool:
    """Whether nothing but the script itself reads a variable of this name: no PATH, IFS, LD_PRELOAD, GIT_SSH, *_proxy."""
    return _SAFE_VARIABLE.fullmatch(name) is not None and not name.endswith("_proxy")


def _awk(words: Sequence[Word]) -> str | None:
    program: str | None = None
    position = 0
    while position < len(words):
        word = words[position]
        if word.text in {"-F", "-v"}:
            position += 2
            continue
        if word.text is not None and re.match(r"-[Fv].", word.text):
            position += 1
            continue
        if word.text == "--":
            position += 1
            program = words[position].text if position < len(words) else None
            break
        if word.may_be_option:
            return "awk with options that may load code or write"
        program = word.text
        break
    if program is None:
        return "awk runs a program that is not written out"
    if any(later.may_be_option for later in words[position + 1 :]):
        return "awk may be given an option by what the shell expands"
    return None if awk_is_plain(program) else "its awk program may run or write something"


def _sed(words: Sequence[Word]) -> str | None:
    scripts: list[str | None] = []
    operands: list[Word] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word.text in {"-e", "--expression"}:
            position += 1
            scripts.append(words[position].text if position < len(words) else None)
        elif word.text is not None and word.text.startswith("--expression="):
            scripts.append(word.text.partition("=")[2])
        elif word.text in {
            "--quiet",
            "--silent",
            "--regexp-extended",
            "--separate",
            "--null-data",
            "--unbuffered",
            "--posix",
            "--debug",
            "--sandbox",
        } or (
            word.text is not None
            and re.fullmatch(r"-[nErsuz]+|-[nErsuz]*i[\w.~-]*|--in-place(?:=[\w.~-]*)?", word.text)
        ):
            pass  # the files of `-i` are found where all files are
        elif word.text is not None and re.fullmatch(r"-[nErsuz]+e", word.text):
            position += 1
            scripts.append(words[position].text if position < len(words) else None)
        elif word.text == "--":
            operands += words[position + 1 :]
            break
        elif word.may_be_option:
            return "sed with options that may change files or load code"
        else:
            operands.append(word)
        position += 1
    if not scripts:
        scripts = [operands[0].text] if operands else [None]
    if any(script is None or not sed_is_plain(script) for script in scripts):
        return "its sed script may run or write something"
    return None
