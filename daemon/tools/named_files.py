"""Where the files lead that a command names: looked up before the policies are asked, and again before the command runs."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from glob import has_magic, iglob
from itertools import islice
from pathlib import Path

from perdure.policies.commands import named_files
from perdure.policies.file_arguments import FileArgument
from perdure.state.events import JSON

MATCHES_MAX = 1_000
_PATH_BYTES_MAX = 4_096


def where_files_lead(
    argv: Sequence[str] | None, script: str | None, *, cwd: Path, home: str | None
) -> dict[str, tuple[str, ...]]:
    """Each file that the command names, as written, with the absolute paths behind it, all links followed; several for a glob.
    Left out is what cannot be told: a glob of too many files, a home directory that is made only when the command starts."""
    found: dict[str, tuple[str, ...]] = {}
    for one in named_files(argv, script, str(cwd)):
        paths = _paths(one, cwd, home)
        if paths is None:
            found.pop(one.text, None)
        else:
            found[one.text] = tuple(dict.fromkeys((*found.get(one.text, ()), *paths)))
    return found


def elsewhere(named: Mapping[str, tuple[str, ...]], cwd: Path) -> dict[str, JSON]:
    """Those of the files that lead somewhere else than they say (a link, not a glob): what an action's digest binds."""
    return {
        text: list(paths)
        for text, paths in named.items()
        if len(paths) == 1 and not has_magic(text) and paths[0] != os.path.normpath(cwd / text)
    }


def _paths(one: FileArgument, cwd: Path, home: str | None) -> tuple[str, ...] | None:
    text = one.text
    if one.glob and text.startswith("~"):
        text = _at_home(text, home) or ""
    if not text or len(os.fsencode(text)) > _PATH_BYTES_MAX:
        return None
    pattern = os.path.join(cwd, text)  # noqa: PTH118 (Path would take away a last `/`, which matters to a glob)
    try:
        if not one.glob or not has_magic(text):
            return (os.path.realpath(pattern),)
        matches = list(islice(iglob(pattern), MATCHES_MAX + 1))  # noqa: PTH207 (as a shell does: no hidden files, links kept)
        if len(matches) > MATCHES_MAX:
            return None
        # where nothing matches, a shell passes the pattern itself
        return tuple(sorted({os.path.realpath(match) for match in matches or [pattern]}))
    except (OSError, ValueError):
        return None


def _at_home(text: str, home: str | None) -> str | None:
    user, slash, rest = text[1:].partition("/")
    if user:
        try:
            home = pwd.getpwnam(user).pw_dir
        except KeyError:
            return text
    return None if home is None else home + slash + rest
