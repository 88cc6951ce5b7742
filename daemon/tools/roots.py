"""The declared roots: resolving a proposed path, and opening it so that nothing swapped meanwhile leads elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import perdure
from perdure.daemon.config import Config
from perdure.daemon.layout import CONFIG_NAME, POLICIES, STOP_FILE, TASKS
from perdure.daemon.tools.model import PathUse, ToolRefused

PATH_BYTES_MAX = 4_096
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SWAPPED = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENOENT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """`read` and `write` are absolute and resolved. `hidden` is never opened at all, `kept` never written, whatever
    configuration and policies say."""

    workspace: Path
    read: tuple[Path, ...]
    write: tuple[Path, ...]
    hidden: tuple[Path, ...]
    kept: tuple[Path, ...]

    def resolve(self, text: str, use: PathUse) -> Path:
        """The real path behind `text` (relative to the workspace), with all links followed. Raises ToolRefused outside
        the roots. What is not there yet resolves too."""
        if not text or len(os.fsencode(text)) > PATH_BYTES_MAX:
            raise _refused(
                text, "it is empty" if not text else f"it is longer than {PATH_BYTES_MAX} bytes", "Give a path"
            )
        try:
            path = Path(os.path.realpath(self.workspace / text))
        except (OSError, ValueError) as error:
            raise _refused(text, str(error), "Give another path") from None
        self.check(path, use)
        return path

    def check(self, path: Path, use: PathUse) -> None:
        """Raises ToolRefused where the roots do not allow `use` of the resolved `path`."""
        roots = self.read if use == "read" else self.write
        for hidden in self.hidden:
            if path.is_relative_to(hidden):
                raise _refused(
                    str(path), "Perdure's own state is never open to tools", "Use `perdure ledger` and `perdure status`"
                )
        if use == "write":
            for kept in self.kept:
                if path.is_relative_to(kept) or kept.is_relative_to(path):
                    raise _refused(
                        str(path),
                        f"{kept.name} governs Perdure itself and is never written by tools",
                        "Edit it yourself",
                    )
        if not any(path.is_relative_to(root) for root in roots):
            declared = ", ".join(self.shown(root) for root in roots) or "none"
            raise _refused(
                str(path),
                f"it is outside the declared roots ({declared})",
                f"Declare it under files.{use} in {CONFIG_NAME}",
            )

    def shown(self, path: Path) -> str:
        """`path` as people write it: relative to the workspace where it lies inside."""
        return str(path.relative_to(self.workspace)) if path.is_relative_to(self.workspace) else str(path)

    @contextlib.contextmanager
    def directory(self, path: Path, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory `path`, reached from `/` link by link without following any: a resolved path has
        none, so that meeting one means that it was swapped. With `make`, missing directories are made, durably."""
        forbidden = self._identities()
        descriptor = os.open("/", _DIRECTORY)
        try:
            for part in path.parts[1:]:
                if make:
                    _make(descriptor, part)
                deeper = self._step(path, part, descriptor)
                os.close(descriptor)
                descriptor = deeper
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) in forbidden:  # the same directory under another name (a bind mount)
                    raise _refused(str(path), "it leads into Perdure's own state", "Give another path")
            yield descriptor
        finally:
            os.close(descriptor)

    def open_file(self, path: Path) -> int:
        """A descriptor of the regular file `path`, for reading. Raises ToolRefused for anything else."""
        with self.directory(path.parent) as parent:
            try:
                descriptor = os.open(
                    path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent
                )
            except OSError as error:
                raise _refused(str(path), os.strerror(error.errno or 0), "Look with list_files") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _refused(str(path), "it is not a regular file", "Only regular files can be read")
            if status.st_nlink > 1 and self._is_state(status):
                raise _refused(str(path), "it is a hard link to Perdure's own state", "Remove the link")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _step(self, path: Path, part: str, descriptor: int) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=descriptor)
        except OSError as error:
            cause = f"there is no directory {part!r}" if error.errno in _SWAPPED else os.strerror(error.errno or 0)
            raise _refused(str(path), cause, "Look with list_files") from None

    def _identities(self) -> set[tuple[int, int]]:
        identities = set()
        for path in self.hidden:
            with contextlib.suppress(OSError):
                status = path.stat()
                identities.add((status.st_dev, status.st_ino))
        return identities

    def _is_state(self, status: os.stat_result) -> bool:
        for path in self.hidden:
            with contextlib.suppress(OSError), os.scandir(path) as entries:
                for entry in entries:
                    if entry.inode() == status.st_ino and entry.stat(follow_symlinks=False).st_dev == status.st_dev:
                        return True
        return False


def declared_roots(config: Config) -> Roots:
    """The roots of a configuration, with what no tool may ever touch."""
    workspace = config.workspace
    own = (POLICIES, TASKS, CONFIG_NAME, STOP_FILE)
    return Roots(
        workspace=workspace,
        read=config.files.read,
        write=config.files.write,
        hidden=tuple({config.state_dir, config.state_dir.resolve()}),
        kept=tuple(
            {place for name in own for place in (workspace / name, (workspace / name).resolve())} | set(installation())
        ),
    )


def installation() -> Sequence[Path]:
    """Where Perdure itself is installed, links followed: its packages, and its Python environment."""
    package = Path(perdure.__file__).parent
    parts = [package, *(child for child in package.iterdir() if child.is_symlink())]
    return sorted({part.resolve() for part in parts} | {Path(sys.prefix).resolve()})


def _make(descriptor: int, part: str) -> None:
    try:
        os.mkdir(part, 0o777, dir_fd=descriptor)
    except (FileExistsError, PermissionError, OSError):
        return  # there already, or for the next step to report
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(path: str, cause: str, hint: str) -> ToolRefused:
    return ToolRefused("use the path", path[:300], cause, hint)
