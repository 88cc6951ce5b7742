"""Programs by name: when the word that starts a command is the program that a rule names."""

from __future__ import annotations

import posixpath

from perdure.policies.patterns import name_glob

# Where a system's own programs lie; the plain name in a rule means one of these, or the plain name in the command.
SYSTEM_DIRECTORIES = ("/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")


def is_program(written: str, wanted: str, *, exact: bool) -> bool:
    """Whether the command word `written` is the program `wanted`. `exact`: a plain name in the rule is the system's program
    of that name; otherwise whatever has that name, wherever it lies. A name with `/` is that file. `*` is any program."""
    if "/" in wanted:
        return name_glob(wanted)(posixpath.normpath(written)) if "*" in wanted else posixpath.normpath(written) == wanted
    directory, name = posixpath.split(written)
    if exact and directory and directory not in SYSTEM_DIRECTORIES:  # as written: `..` after a link leads elsewhere
        return wanted == "*"
    return name_glob(wanted)(name)
