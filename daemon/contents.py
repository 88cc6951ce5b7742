"""What the files that an action names hold once it is done, as digests: for the guard against writing to and fro."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.daemon.tools.model import Prepared

FILES_MAX = 16  # of one action
BYTES_MAX = 1_000_000  # larger files are not looked at


def contents(prepared: Prepared, workspace: Path) -> dict[str, str]:
    """Digests of the workspace's files that the action names, by their paths in it; of a command, of all that it names. What is
    no file, too large or not to be read is left out."""
    named = [*prepared.paths.values(), *(prepared.named or {}).values()]
    held: dict[str, str] = {}
    for path in sorted({Path(path) for paths in named for path in paths}):
        if len(held) < FILES_MAX and path.is_relative_to(workspace) and (content := _content(path)) is not None:
            held[str(path.relative_to(workspace))] = content
    return held


def _content(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > BYTES_MAX:
            return None
        return hashlib.sha256(file.read(BYTES_MAX)).hexdigest()
