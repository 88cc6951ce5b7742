"""Files as the tools see and replace them: one version's identity, reading it, and putting another in its place."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.daemon.tools.model import ToolRefused
from perdure.daemon.tools.roots import Roots

STASHED_BYTES_MAX = 256 * 1024**2  # larger files are not changed by file tools: the old version could not be kept
_PART_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a file: content hash, size in bytes, permission bits and owner."""

    sha256: str
    size: int
    mode: int
    uid: int
    gid: int

    def as_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "size": self.size, "mode": self.mode, "uid": self.uid, "gid": self.gid}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Version:
        return cls(**value)


def sha256(data: bytes) -> str:
    """The hash as versions carry it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def current(roots: Roots, path: Path, copy_to: int | None = None) -> Version | None:
    """The version that stands at `path` now (None: nothing does), copied to the descriptor `copy_to` while it is read."""
    if not exists(roots, path):
        return None
    descriptor = roots.open_file(path)
    try:
        status = os.fstat(descriptor)
        if status.st_size > STASHED_BYTES_MAX:
            raise ToolRefused(
                "change",
                str(path),
                f"it is {status.st_size} bytes long, more than the {STASHED_BYTES_MAX} that undo keeps",
                "Use a command for files of this size",
            )
        hashed, size = hashlib.sha256(), 0
        for part in parts(descriptor):
            hashed.update(part)
            size += len(part)
            if copy_to is not None:
                write_all(copy_to, part)
    finally:
        os.close(descriptor)
    return Version(
        sha256=f"sha256:{hashed.hexdigest()}",
        size=size,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
    )


def exists(roots: Roots, path: Path) -> bool:
    """Whether anything stands at `path`, its directory included."""
    if not path.parent.is_dir():
        return False
    with roots.directory(path.parent) as parent:
        try:
            os.stat(path.name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
    return True


def hash_of(roots: Roots, path: Path, size: int, more: bytes = b"") -> str:
    """The hash of the file's first `size` bytes with `more` behind them."""
    descriptor = roots.open_file(path)
    try:
        hashed = hashlib.sha256()
        for part in parts(descriptor, size):
            hashed.update(part)
    finally:
        os.close(descriptor)
    hashed.update(more)
    return f"sha256:{hashed.hexdigest()}"


def put(roots: Roots, path: Path, content: Iterator[bytes], *, like: Version | None, name: str) -> None:
    """Replace what stands at `path` by `content`, all or nothing and durably; permissions and owner as in `like`. `name`
    makes the temporary file's name, the same at every attempt, so that no attempt leaves one behind."""
    roots.check(path, "write")
    temporary = f".perdure-{name}.tmp"
    with roots.directory(path.parent, make=True) as parent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=parent
        )
        try:
            try:
                for part in content:
                    write_all(descriptor, part)
                if like is not None:
                    _dress(descriptor, like)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, path.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        sync(parent)


def remove(roots: Roots, path: Path) -> None:
    """Remove the file at `path`, durably; nothing there is fine."""
    roots.check(path, "write")
    with roots.directory(path.parent) as parent:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=parent)
        sync(parent)


def sync(directory: int) -> None:
    """Make a directory's entries durable (an O_PATH descriptor cannot be synced itself)."""
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parts(descriptor: int, limit: int | None = None) -> Iterator[bytes]:
    """The rest of a file, in parts; at most `limit` bytes."""
    left = limit
    while part := os.read(descriptor, _PART_BYTES if left is None else min(left, _PART_BYTES)):
        yield part
        if left is not None:
            left -= len(part)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, or raise OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _dress(descriptor: int, like: Version) -> None:
    with contextlib.suppress(PermissionError):  # only root may give files away; the content matters more
        os.fchown(descriptor, like.uid, like.gid)
    os.fchmod(descriptor, like.mode & 0o777)
