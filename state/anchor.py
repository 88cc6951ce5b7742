"""The anchor: the ledger's head, appended to a file of its own after each commit. A chain alone proves that what is there
fits together; the anchor proves that nothing is missing from its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perdure.state.chain import parse

NAME: Final = "anchor"
_LINE_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Anchored:
    """One line: the event `seq` of `epoch` had this hash, and was written at `at`; with a signature over the rest, if there
    is a key."""

    epoch: int
    seq: int
    hash: str
    at: int
    signature: str | None = None

    def signed(self) -> bytes:
        """What a signature covers: the line without it."""
        return f'{{"at":{self.at},"epoch":{self.epoch},"hash":"{self.hash}","seq":{self.seq}}}'.encode()

    def line(self) -> bytes:
        """The line as it stands in the file."""
        if self.signature is None:
            return self.signed() + b"\n"
        return self.signed()[:-1] + f',"signature":"{self.signature}"}}\n'.encode()


class AnchorWriter:
    """Appends heads. A line is not fsynced: the ledger's commit was, and a lost line only shows as a tail not yet anchored."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        if not _ends_whole(self.path):
            os.write(self._file, b"\n")  # a line torn by a crash stays, on a line of its own, and is passed over

    def append(self, anchored: Anchored) -> None:
        """Append one head. Raises OSError."""
        line = anchored.line()
        if os.write(self._file, line) != len(line):
            raise OSError(28, "No space left for a whole line", str(self.path))

    def close(self) -> None:
        """Make what was appended durable and close the file."""
        os.fsync(self._file)
        os.close(self._file)


def anchors(state_dir: Path, bytes_max: int | None = None) -> Iterator[Anchored]:
    """Every whole line within the first `bytes_max` bytes, in order; torn ones are passed over."""
    try:
        file = (state_dir / NAME).open("rb")
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_LINE_BYTES_MAX):
            if bytes_max is not None and file.tell() > bytes_max:
                return
            if (anchored := parsed(line)) is not None:
                yield anchored


def last_anchor(state_dir: Path) -> Anchored | None:
    """The last whole line, read from the end of the file."""
    try:
        file = (state_dir / NAME).open("rb")
    except FileNotFoundError:
        return None
    with file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 4 * _LINE_BYTES_MAX))
        for line in reversed(file.read().splitlines(keepends=True)):
            if (anchored := parsed(line)) is not None:
                return anchored
    return None


def parsed(line: bytes) -> Anchored | None:
    """A line of the anchor; None where it is none, or torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = parse(line)
    except ValueError:
        return None
    match value:
        case {"epoch": int(epoch), "seq": int(seq), "hash": str(hash_), "at": int(at), "signature": str(signature)}:
            return Anchored(epoch, seq, hash_, at, signature)
        case {"epoch": int(epoch), "seq": int(seq), "hash": str(hash_), "at": int(at)}:
            return Anchored(epoch, seq, hash_, at)
    return None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
