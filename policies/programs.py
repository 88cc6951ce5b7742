"""Programs by name: when what a command runs is the program that a rule names."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from perdure.policies.patterns import name_glob
from perdure.policies.words import Word

# Where a system's own programs lie; the plain name in a rule means one of these, or the plain name in the command.
SYSTEM_DIRECTORIES = ("/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin")

# Programs whose first operand says what they do: rules may name `git log`, `systemctl status`.
WITH_SUBCOMMANDS = frozenset(
    [
        "git",
        "systemctl",
        "docker",
        "podman",
        "kubectl",
        "apt",
        "apt-get",
        "apt-cache",
        "dpkg",
        "dnf",
        "yum",
        "pip",
        "pip3",
        "npm",
        "yarn",
        "cargo",
        "go",
        "helm",
        "terraform",
        "aws",
        "gcloud",
        "az",
        "snap",
        "flatpak",
        "ip",
        "nft",
        "ufw",
        "loginctl",
        "hostnamectl",
        "timedatectl",
        "resolvectl",
        "networkctl",
        "bootctl",
        "zfs",
        "zpool",
        "btrfs",
        "nmcli",
        "brew",
        "gh",
        "svn",
        "hg",
        "openssl",
        "rpm",
        "pacman",
        "apk",
        "uv",
        "poetry",
        "conda",
        "virsh",
        "lxc",
        "incus",
        "crictl",
        "nomad",
        "consul",
        "vault",
        "rclone",
        "restic",
        "borg",
    ]
)


# Options before the subcommand that only say how much or how it is shown, and those that take a word with them.
QUIET_OPTIONS = frozenset(
    {
        "--no-pager",
        "--no-optional-locks",
        "-q",
        "--quiet",
        "--no-legend",
        "--user",
        "--plain",
        "--full",
        "-br",
        "-brief",
        "-4",
        "-6",
        "-j",
        "-s",
        "-d",
        "-o",
    }
)
SCOPE_OPTIONS = frozenset({"-n", "--namespace"})
# What they do without any word.
BY_DEFAULT = {
    "systemctl": "list-units",
    "timedatectl": "status",
    "hostnamectl": "status",
    "resolvectl": "status",
    "loginctl": "list-sessions",
}
# Whose first option is what they do.
DOES_BY_OPTION = frozenset({"dpkg", "rpm", "pacman", "systemctl"})


def subcommand_of(name: str, words: Sequence[Word]) -> str:
    """The subcommand among the words after the program; `?` where it is not certain, an option's name where an option that
    may change everything stands before it, what they do by default where there is none, empty for programs without subcommands."""
    if name not in WITH_SUBCOMMANDS:
        return ""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif not word.text or word.text == "--":
            return "?"
        elif not word.text.startswith("-"):
            return word.text
        elif word.text in SCOPE_OPTIONS and name == "kubectl":
            skip = True
        elif word.text not in QUIET_OPTIONS or (word.text in {"-o", "-s", "-d", "-q"} and name != "ip"):
            return word.text.partition("=")[0]
    return BY_DEFAULT.get(name, "")


class Run(NamedTuple):
    """One program that would run, as written (absolute where a directory was given), and its subcommand where it has them."""

    program: str
    subcommand: str = ""

    def __str__(self) -> str:
        return f"{self.program} {self.subcommand}" if self.subcommand else self.program


def is_program(run: Run, wanted: str, *, exact: bool) -> bool:
    """Whether `run` is the program `wanted`, which may name a subcommand (`git log`). `exact`: a plain name in the rule is the
    system's program of that name; otherwise whatever has that name, wherever it lies. A name with `/` is that file."""
    name, _, subcommand = wanted.partition(" ")
    if subcommand and not name_glob(subcommand.strip())(run.subcommand):
        return False
    if name.startswith("/"):
        return name_glob(name)(run.program if exact else posixpath.normpath(run.program))
    directory, base = posixpath.split(run.program)
    if exact and directory and directory not in SYSTEM_DIRECTORIES:  # as written: `..` after a link leads elsewhere
        return wanted == "*"
    return name_glob(name)(base)
