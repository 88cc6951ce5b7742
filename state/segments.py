"""Sealed segments: runs of events, compressed and never written again, and the manifest that names them. What a backup
directory is made of; `sealing` writes them, `unsealing` checks them and makes a ledger of them."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from perdure.errors import PerdureError
from perdure.state import chain
from perdure.state.anchor import Anchored
from perdure.state.canonical import canonical

FORMAT: Final = "perdure/segments/1"
MANIFEST: Final = "manifest.json"
UNBORN: Final = ("segment.new", "manifest.json.new")  # what files are called until they are whole and durable
NAME: Final = re.compile(r"\d{12}-\d{12}-[0-9a-f]{16}\.jsonl\.gz")
COPY_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 3 * chain.PAYLOAD_BYTES_MAX  # quotes and backslashes of a payload are escaped once more
_MANIFEST_BYTES_MAX: Final = 1 << 28

ANOTHER_COPY: Final = "Take another copy of this backup"


class Unreadable(ValueError):
    """A segment, or a line of it, that is not what `write_segment` wrote."""


@dataclass(frozen=True, slots=True)
class SealedEvent:
    """One event as the chain covers it. `payload` (canonical bytes) and `salt` are None where it has none or it was erased."""

    seq: int
    at: int
    type: str
    body: str
    payload_hash: str | None
    hash: str
    salt: bytes | None = None
    payload: bytes | None = None

    def line(self) -> bytes:
        """Canonical JSON. Body and payload are text within it, so that the bytes which were hashed come back exactly."""
        value: dict[str, Any] = {
            "seq": self.seq, "at": self.at, "type": self.type, "body": self.body, "hash": self.hash,
            "payload_hash": self.payload_hash,
        }  # fmt: skip
        if self.payload is not None and self.salt is not None:
            value |= {"payload": self.payload.decode(), "salt": self.salt.hex()}
        return canonical(value) + b"\n"

    def follows(self, previous: str | None) -> bool:
        """Whether its hash is that of what it says, after the event with the hash `previous`."""
        return chain.link(self.seq, self.at, self.type, self.body, self.payload_hash, previous) == self.hash

    def holds_what_was_recorded(self) -> bool:
        """Whether its payload is the one that the chain vouches for."""
        return (
            self.payload is not None
            and self.salt is not None
            and chain.salted_hash(self.salt, self.payload) == self.payload_hash
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """What the manifest says of one file: its SHA-256, the events `first` to `last`, the hashes of the event before them and
    of the last. What was erased up to event `as_of` is not in it. `anchored` is the last anchored head up to `last`."""

    file: str
    sha256: str
    bytes: int
    first: int
    last: int
    previous: str | None
    hash: str
    at: int
    as_of: int
    anchored: Anchored | None

    def as_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in self.__slots__ if name != "anchored"}
        return {**value, "anchored": None if self.anchored is None else chain.parse(self.anchored.line())}


@dataclass(frozen=True, slots=True)
class Manifest:
    """The segments of one workspace's ledger, in order."""

    workspace: str
    segments: tuple[Segment, ...] = ()


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a backup directory; None where there is none. Raises PerdureError where it cannot be read."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            value = chain.parse(file.read(_MANIFEST_BYTES_MAX))
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            said = value.get("format") if isinstance(value, dict) else None
            cause = f"its format is {said}, and this Perdure reads {FORMAT}"
            raise PerdureError("read", str(path), cause, "Use the version of Perdure that wrote it")
        entries: Any = value["segments"]
        return Manifest(str(value["workspace"]), tuple(_segment(entry) for entry in entries))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PerdureError("read", str(path), error.strerror or str(error), "Check permissions there") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PerdureError("read", str(path), f"it is damaged ({error})", ANOTHER_COPY) from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Put a manifest in the old one's place, durably, after the segments that it names. Raises OSError."""
    sync(directory)
    value = {
        "format": FORMAT,
        "workspace": manifest.workspace,
        "segments": [segment.as_json() for segment in manifest.segments],
    }
    unborn = directory / UNBORN[1]
    with unborn.open("wb") as file:
        file.write(canonical(value) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    unborn.replace(directory / MANIFEST)
    sync(directory)


def write_segment(
    directory: Path,
    events: Iterable[SealedEvent],
    *,
    previous: str | None,
    as_of: int,
    anchored: Anchored | None = None,
) -> Segment:
    """Write one segment under its final name: whole and durable, or not there. There is at least one event.

    Its name tells the events and the contents, so that a segment which is written anew never replaces another.
    Raises OSError.
    """
    unborn = directory / UNBORN[0]
    first: SealedEvent | None = None
    last: SealedEvent | None = None
    with unborn.open("wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
            for event in events:
                packed.write(event.line())
                first, last = first or event, event
        file.flush()
        os.fsync(file.fileno())
    assert first is not None
    assert last is not None
    digest, size = digest_of(unborn)
    name = f"{first.seq:012}-{last.seq:012}-{digest[:16]}.jsonl.gz"
    unborn.rename(directory / name)
    if anchored is not None and not first.seq <= anchored.seq <= last.seq:
        anchored = None
    return Segment(
        file=name, sha256=digest, bytes=size, first=first.seq, last=last.seq, previous=previous, hash=last.hash,
        at=last.at, as_of=as_of, anchored=anchored,
    )  # fmt: skip


def read_segment(path: Path) -> Iterator[SealedEvent]:
    """The events of one file, in constant memory. Raises Unreadable, and OSError where there is no file to read."""
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_LINE_BYTES_MAX):
                yield _event(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unreadable(str(error) or type(error).__name__) from error


def digest_of(path: Path) -> tuple[str, int]:
    """(SHA-256 in hex, size) of a file. Raises OSError."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            sha256.update(block)
            size += len(block)
    return sha256.hexdigest(), size


def without(event: SealedEvent) -> SealedEvent:
    """The event after its payload's erasure."""
    return replace(event, payload=None, salt=None)


def leftovers(directory: Path, manifest: Manifest) -> list[Path]:
    """Files of a run that was cut off: unfinished ones, and segments that the manifest does not name."""
    named = {segment.file for segment in manifest.segments}
    return sorted(
        path
        for path in directory.iterdir()
        if path.name in UNBORN or (NAME.fullmatch(path.name) and path.name not in named)
    )


def sync(path: Path) -> None:
    """Make a file, or a directory's names, durable. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _segment(entry: Any) -> Segment:
    anchored = entry["anchored"]
    found = Segment(**{**entry, "anchored": None if anchored is None else Anchored(**anchored)})
    numbers = (found.first, found.last, found.bytes, found.at, found.as_of)
    if not all(type(number) is int for number in numbers) or not NAME.fullmatch(found.file):
        raise ValueError(f"the entry for {found.file!r} is not one of ours")
    return found


def _event(line: bytes) -> SealedEvent:
    try:
        value: Any = chain.parse(line)
        payload, salt = value.get("payload"), value.get("salt")
        if type(value["seq"]) is not int or type(value["at"]) is not int or type(value["body"]) is not str:
            raise TypeError("a number or text is none")
        return SealedEvent(
            seq=value["seq"], at=value["at"], type=value["type"], body=value["body"], hash=value["hash"],
            payload_hash=value["payload_hash"], payload=None if payload is None else payload.encode(),
            salt=None if salt is None else bytes.fromhex(salt),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"a line of it is no event ({error})") from error
