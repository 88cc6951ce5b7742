"""The action digest, and digests of files that an action executes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from perdure.daemon.tools.model import Prepared, ToolSpec
from perdure.state.canonical import digest
from perdure.state.events import JSON

_REMEMBERED_MAX = 512
_remembered: dict[tuple[int, int, int, int, int], str] = {}


def prepare(
    spec: ToolSpec,
    args: Mapping[str, JSON],
    *,
    paths: Mapping[str, Path] | None = None,
    also: Mapping[str, JSON] | None = None,
) -> Prepared:
    """A prepared call without a program: `also` is what else the digest binds."""
    resolved = {name: (str(path),) for name, path in (paths or {}).items()}
    return Prepared(spec=spec, args=args, paths=resolved, digest=action_digest(spec, args, paths=resolved, also=also))


def action_digest(
    spec: ToolSpec,
    args: Mapping[str, JSON],
    *,
    paths: Mapping[str, tuple[str, ...]],
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
    argv: tuple[str, ...] | None = None,
    executed: Mapping[str, str] | None = None,
    also: Mapping[str, JSON] | None = None,
) -> str:
    """SHA-256 over everything that decides what the action does."""
    return digest(
        {
            "tool": spec.name,
            "schema": digest(spec.args_schema),
            "args": args,
            "cwd": cwd,
            "environment": environment,
            "paths": paths,
            "argv": argv,
            "executed": executed or {},
            "also": also or {},
        }
    )


def executed_digest(path: Path) -> str:
    """The SHA-256 of a program's bytes; read again only when size, times or inode changed (programs are large)."""
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _remembered.get(key)
    if known is None:
        with path.open("rb") as file:
            known = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if len(_remembered) >= _REMEMBERED_MAX:
            _remembered.clear()
        _remembered[key] = known
    return known
