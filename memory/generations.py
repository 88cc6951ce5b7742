"""The directories of the vector index, and what stands in them under which name: each store is a generation, made aside and
then put in use by a file that names it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path

_NUMBER = re.compile(r"\d{1,9}")


class Generations:
    """`directory` with numbered stores in it, and the file `current`. Whatever else stands there is none of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, generation: str) -> Path:
        """Where a generation stands."""
        return self.directory / generation

    def current(self) -> str | None:
        """The generation in use, if there is one."""
        try:
            name = (self.directory / "current").read_text(encoding="ascii", errors="replace")[:32].strip()
        except OSError:
            return None
        return name if _NUMBER.fullmatch(name) and self.path(name).is_dir() else None

    def next(self) -> str:
        """The name of one to be made; the directory is there afterwards, also where something else stood in its place."""
        if self.directory.is_symlink() or (self.directory.exists() and not self.directory.is_dir()):
            self.directory.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        numbers = [int(each.name) for each in self.directory.iterdir() if _NUMBER.fullmatch(each.name)]
        return str(max(numbers, default=0) + 1)

    def copy(self, generation: str, to: str) -> None:
        """Copy one that nobody writes to meanwhile."""
        shutil.copytree(self.path(generation), self.path(to))

    def use(self, generation: str) -> None:
        """From now on this one is in use, also after a kill in the middle of this line."""
        draft = self.directory / "current.new"
        draft.write_text(generation, encoding="ascii")
        draft.replace(self.directory / "current")

    def use_none(self) -> None:
        """None is worth opening."""
        with contextlib.suppress(OSError):
            (self.directory / "current").unlink(missing_ok=True)

    def remove(self, generation: str) -> None:
        """It is not wanted any more."""
        shutil.rmtree(self.path(generation), ignore_errors=True)

    def sweep(self, generation: str) -> None:
        """Remove what is neither this generation nor the file that names it."""
        for each in self.directory.iterdir():
            if each.name in {"current", generation}:
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each, ignore_errors=True)
            else:
                each.unlink(missing_ok=True)

    # -- how much of a generation stands in its segments --------------------------------------------------------------

    def folded(self, generation: str) -> int:
        """How many vectors it held when its log was last empty."""
        try:
            return int((self.path(generation) / "folded").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def set_folded(self, generation: str, vectors: int) -> None:
        """Its log is empty, with so many vectors."""
        (self.path(generation) / "folded").write_text(str(vectors), encoding="ascii")


def collection_name(task: str) -> str:
    """A name that Chroma accepts, for any task (empty: records of no task)."""
    return "t" + hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:32]
