"""write_file, append_file, move_file and delete_file: changes that stay restorable.

Effect classes: write is `idempotent` (the same text at the same place is the same state). Append, move and delete change
what a second run would see, so they are `probeable`: the stash's manifest, durable before the effect, holds hash and size
before and after, and the probe compares the file with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import prepare
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolRefused, ToolSpec
from perdure.daemon.tools.roots import Roots
from perdure.daemon.tools.stash import Change, Planned, Stash
from perdure.daemon.tools.versions import (
    STASHED_BYTES_MAX,
    Version,
    current,
    hash_of,
    parts,
    put,
    remove,
    sha256,
    sync,
    write_all,
)
from perdure.state.events import JSON

_UNTIL_WRITTEN = "The file is as it was"


@dataclass(frozen=True, slots=True)
class WritingTool:
    """A tool that changes files: `change` does it and returns the result's value, `happened` compares with the stash."""

    spec: ToolSpec
    roots: Roots
    stash: Stash
    change: Callable[[Roots, Stash, Mapping[str, Path], Mapping[str, Any], str], dict[str, JSON]]
    happened: Callable[[Roots, Sequence[Change]], bool | None]

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        paths = {name: self.roots.resolve(str(args[name]), "write") for name in self.spec.paths}
        return prepare(self.spec, args, paths=paths)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        paths = {name: Path(resolved[0]) for name, resolved in prepared.paths.items()}
        try:
            value = await asyncio.to_thread(self.change, self.roots, self.stash, paths, prepared.args, call.action)
        except ToolRefused as error:
            return Result(ok=False, value=None, error=str(error))
        except OSError as error:  # a full disk, a device that fails: look what became of it
            path, cause = next(iter(prepared.paths.values()))[0], error.strerror or str(error)
            if await self.probe(prepared, call) is False:
                return Result(ok=False, value=None, error=f"{self.spec.name} {path}: {cause}. {_UNTIL_WRITTEN}")
            raise ToolInterrupted("finish", f"{self.spec.name} {path}", cause, "Look at the file") from None
        return Result(ok=True, value=value, undo=True)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        try:
            changes = await asyncio.to_thread(self.stash.load, call.action)
            if changes is None:
                return False  # the stash comes before the effect
            return await asyncio.to_thread(self.happened, self.roots, changes)
        except (ToolRefused, OSError):
            return None  # what stands there now cannot be read


def writing_tools(roots: Roots, stash: Stash) -> list[WritingTool]:
    """The four tools that change files."""
    return [
        WritingTool(WRITE_FILE, roots, stash, write_file, as_planned),
        WritingTool(APPEND_FILE, roots, stash, append_file, appended),
        WritingTool(MOVE_FILE, roots, stash, move_file, as_planned),
        WritingTool(DELETE_FILE, roots, stash, delete_file, as_planned),
    ]


def as_planned(roots: Roots, changes: Sequence[Change]) -> bool | None:
    """True where every file is as it was to become, False where every file is as it was, None in between."""
    now = [_hash(current(roots, change.path)) for change in changes]
    if now == [change.after for change in changes]:
        return True
    if now == [_hash(change.before) for change in changes]:
        return False
    return None


def _hash(version: Version | None) -> str | None:
    return version.sha256 if version else None


# -- write_file -------------------------------------------------------------------------------------------------------

WRITE_FILE = ToolSpec(
    name="write_file",
    description="Write a text file, replacing what was there (which stays restorable). Missing directories are made.",
    args_schema=schemas.args("path", "text", path=schemas.path("The file"), text=schemas.text("The whole new content")),
    effect="idempotent",
    paths={"path": "write"},
    free_text=("text",),
)


def write_file(
    roots: Roots, stash: Stash, paths: Mapping[str, Path], args: Mapping[str, Any], action: str
) -> dict[str, JSON]:
    """Replace the file's content."""
    path, data = paths["path"], args["text"].encode()
    (change,) = stash.keep(action, "write_file", [Planned(path=path, after=sha256(data), after_size=len(data))])
    put(roots, path, iter([data]), like=change.before, name=action)
    return {
        "path": roots.shown(path),
        "bytes": len(data),
        "sha256": sha256(data),
        "replaced": change.before is not None,
    }


# -- append_file ------------------------------------------------------------------------------------------------------

APPEND_FILE = ToolSpec(
    name="append_file",
    description="Append text to a file, which is made where it is missing.",
    args_schema=schemas.args("path", "text", path=schemas.path("The file"), text=schemas.text("What to append")),
    effect="probeable",
    probeable=True,
    paths={"path": "write"},
    free_text=("text",),
)


def append_file(
    roots: Roots, stash: Stash, paths: Mapping[str, Path], args: Mapping[str, Any], action: str
) -> dict[str, JSON]:
    """Put text behind the file's content; at a second attempt, only what is missing of it."""
    path, data = paths["path"], args["text"].encode()
    known = stash.load(action)
    if known is None:
        before = current(roots, path)
        old = before.size if before else 0
        if old + len(data) > STASHED_BYTES_MAX:
            raise ToolRefused(
                "append to", str(path), f"it would be more than {STASHED_BYTES_MAX} bytes long", "Begin another file"
            )
        after = hash_of(roots, path, old, data) if before else sha256(data)
        known = stash.keep(
            action, "append_file", [Planned(path=path, after=after, after_size=old + len(data), kept="prefix")]
        )
    (change,) = known
    if change.before is None and _hash(current(roots, path)) in (None, change.after):
        put(roots, path, iter([data]), like=None, name=action)
    else:
        _extend(roots, change, data)
    return {"path": roots.shown(path), "bytes": len(data), "size": change.after_size, "sha256": change.after}


def _extend(roots: Roots, change: Change, data: bytes) -> None:
    """Append in place, so that whoever follows the file sees it. What a torn first attempt left is taken off before."""
    old = change.before.size if change.before else 0
    with roots.directory(change.path.parent) as parent:
        descriptor = os.open(change.path.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        try:
            status = os.fstat(descriptor)
            if status.st_nlink > 1:
                raise ToolRefused(
                    "append to",
                    str(change.path),
                    "it has another name (a hard link), which may lie outside the roots",
                    "Copy it first",
                )
            prefix = hashlib.sha256()
            for part in parts(descriptor, old):
                prefix.update(part)
            tail = b"".join(parts(descriptor, len(data) + 1))
            if f"sha256:{prefix.hexdigest()}" != (
                change.before.sha256 if change.before else sha256(b"")
            ) or not data.startswith(tail):
                raise ToolRefused(
                    "append to", str(change.path), "somebody else has just changed it", "Propose it again"
                )
            os.lseek(descriptor, old + len(tail), os.SEEK_SET)
            try:
                write_all(descriptor, data[len(tail) :])
                os.fsync(descriptor)
            except OSError:  # no room for all of it: leave none of it
                os.ftruncate(descriptor, old)
                raise
        finally:
            os.close(descriptor)


def appended(roots: Roots, changes: Sequence[Change]) -> bool | None:
    """Whether the file begins with what it was to become: what others appended later does not matter."""
    (change,) = changes
    now = current(roots, change.path)
    if now is None:
        return False if change.before is None else None
    if now.size >= change.after_size and hash_of(roots, change.path, change.after_size) == change.after:
        return True
    return False if _hash(now) == _hash(change.before) else None


# -- move_file and delete_file ----------------------------------------------------------------------------------------

MOVE_FILE = ToolSpec(
    name="move_file",
    description="Move or rename a file.",
    args_schema=schemas.args(
        "from",
        "to",
        **{"from": schemas.path("The file"), "to": schemas.path("Its new place, name included")},
        overwrite=schemas.flag("Replace a file that is already there"),
    ),
    effect="probeable",
    probeable=True,
    paths={"from": "write", "to": "write"},
)


def move_file(
    roots: Roots, stash: Stash, paths: Mapping[str, Path], args: Mapping[str, Any], action: str
) -> dict[str, JSON]:
    """Rename, or copy and remove across file systems."""
    source, target = paths["from"], paths["to"]
    if source == target:
        raise ToolRefused("move", str(source), "it is there already", _UNTIL_WRITTEN)
    if stash.load(action) is None:
        content = _present(roots, source)
        if not args.get("overwrite", False) and current(roots, target) is not None:
            raise ToolRefused(
                "move", str(source), f"there is a file at {roots.shown(target)}", "Pass overwrite to replace it"
            )
        stash.keep(
            action,
            "move_file",
            [Planned(path=source, after=None), Planned(path=target, after=content.sha256, after_size=content.size)],
        )
    old, _ = stash.keep(action, "move_file", ())
    if current(roots, source) is not None:
        _rename(roots, source, target, old, action)
    return {"from": roots.shown(source), "to": roots.shown(target), "sha256": old.before.sha256 if old.before else None}


def _rename(roots: Roots, source: Path, target: Path, old: Change, action: str) -> None:
    with roots.directory(source.parent) as from_directory, roots.directory(target.parent, make=True) as to_directory:
        try:
            os.rename(source.name, target.name, src_dir_fd=from_directory, dst_dir_fd=to_directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise ToolRefused("move", str(source), os.strerror(error.errno or 0), _UNTIL_WRITTEN) from None
        else:
            sync(to_directory)
            sync(from_directory)
            return
    descriptor = roots.open_file(source)
    with contextlib.closing(os.fdopen(descriptor, "rb")):
        put(roots, target, parts(descriptor), like=old.before, name=action)
    remove(roots, source)


DELETE_FILE = ToolSpec(
    name="delete_file",
    description="Delete a file. It stays restorable.",
    args_schema=schemas.args("path", path=schemas.path("The file")),
    effect="probeable",
    probeable=True,
    paths={"path": "write"},
)


def delete_file(
    roots: Roots, stash: Stash, paths: Mapping[str, Path], _: Mapping[str, Any], action: str
) -> dict[str, JSON]:
    """Remove the file, once its content is stashed."""
    path = paths["path"]
    if stash.load(action) is None:
        _present(roots, path)
    (change,) = stash.keep(action, "delete_file", [Planned(path=path, after=None)])
    remove(roots, path)
    return {"path": roots.shown(path), "sha256": _hash(change.before)}


def _present(roots: Roots, path: Path) -> Version:
    version = current(roots, path)
    if version is None:
        raise ToolRefused("find", str(path), "there is no such file", "Look with list_files")
    return version
