"""What file tools overwrite, move or delete, kept under `state/undo/ACTION/` before they do it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.daemon.tools.model import ToolRefused
from perdure.daemon.tools.roots import Roots
from perdure.daemon.tools.versions import Version, current, sync

MANIFEST = "manifest.json"
_FORMAT = 1

Kept = Literal["content", "prefix"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one action does to one file. `before` and `after` are None where there is no file. `kept` tells what lies in the
    stash: the whole content (in `file`), or nothing because the file's own first `before.size` bytes are the old content."""

    path: Path
    before: Version | None
    after: str | None
    after_size: int
    kept: Kept = "content"
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A change before its old content is stashed."""

    path: Path
    after: str | None
    after_size: int = 0
    kept: Kept = "content"


class Stash:
    """The stash of a workspace. One directory per action, complete once its manifest is there."""

    def __init__(self, state_dir: Path, roots: Roots) -> None:
        self._directory = state_dir / "undo"
        self._roots = roots

    def keep(self, action: str, tool: str, planned: Sequence[Planned]) -> tuple[Change, ...]:
        """Stash what stands at the planned paths, durably, and return the changes. At a second attempt of the same action
        the first one's stash stays, and each file must be as it was before or as it was to become."""
        if (known := self.load(action)) is not None:
            for change in known:
                self._check_untouched(change)
            return known
        place = self.place(action)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        changes = tuple(self._keep(place, index, plan) for index, plan in enumerate(planned))
        manifest = {
            "format": _FORMAT,
            "action": action,
            "tool": tool,
            "changes": [_as_json(change) for change in changes],
        }
        _write_durably(place / MANIFEST, json.dumps(manifest, indent=1).encode())
        for directory in (self._directory, self._directory.parent):
            _sync(directory)
        return changes

    def load(self, action: str) -> tuple[Change, ...] | None:
        """The changes that `action` made or was about to make; None where it has stashed nothing."""
        try:
            manifest = json.loads((self.place(action) / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        return tuple(_from_json(change) for change in manifest["changes"])

    def place(self, action: str) -> Path:
        """The action's directory in the stash."""
        if not action.isalnum():
            raise ToolRefused(
                "find the stash of",
                repr(action)[:100],
                "that is not an action's id",
                "Look with `perdure ledger show SESSION`",
            )
        return self._directory / action

    def _keep(self, place: Path, index: int, plan: Planned) -> Change:
        if plan.kept == "prefix":
            before = current(self._roots, plan.path)
            return Change(path=plan.path, before=before, after=plan.after, after_size=plan.after_size, kept="prefix")
        descriptor = os.open(
            place / str(index), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            before = current(self._roots, plan.path, copy_to=descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return Change(path=plan.path, before=before, after=plan.after, after_size=plan.after_size, file=str(index))

    def _check_untouched(self, change: Change) -> None:
        if change.kept == "prefix":
            return  # the append tool looks at the bytes themselves
        now = current(self._roots, change.path)
        if (now.sha256 if now else None) not in (change.before.sha256 if change.before else None, change.after):
            raise ToolRefused(
                "try again on",
                str(change.path),
                "somebody else has changed it since the first attempt",
                "Look at it, then propose the action anew",
            )


def _as_json(change: Change) -> dict[str, Any]:
    return {
        "path": str(change.path),
        "before": change.before.as_json() if change.before else None,
        "after": change.after,
        "after_size": change.after_size,
        "kept": change.kept,
        "file": change.file,
    }


def _from_json(value: dict[str, Any]) -> Change:
    before = Version.from_json(value["before"]) if value["before"] else None
    return Change(**{**value, "path": Path(value["path"]), "before": before})


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync(path.parent)


def drop(state_dir: Path, action: str) -> bool:
    """Remove what is stashed of an action, for good; returns whether there was anything."""
    place = state_dir / "undo" / action
    if not place.is_dir() or place.parent != state_dir / "undo":
        return False
    (place / MANIFEST).unlink(missing_ok=True)  # first: without it the rest counts as never stashed
    shutil.rmtree(place)
    _sync(place.parent)
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
