"""list_files, read_file and search_files: looking, within the declared roots and within bounds."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import re2

from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import prepare
from perdure.daemon.tools.model import Call, Prepared, Result, ToolRefused, ToolSpec
from perdure.daemon.tools.roots import Roots
from perdure.daemon.tools.versions import parts
from perdure.state.events import JSON

LISTED_DEFAULT, LISTED_MAX = 200, 2_000
SCANNED_MAX = 100_000
READ_DEFAULT, READ_MAX = 32_768, 262_144
HASHED_BYTES_MAX = 1024**3
MATCHES_DEFAULT, MATCHES_MAX = 100, 1_000
SEARCHED_BYTES_MAX = 512 * 1024**2
LINE_BYTES_MAX = 65_536  # of a longer line only so much is searched
LINE_SHOWN_MAX = 400
_PATTERN_MEMORY_BYTES = 8 * 1024**2
_BINARY_PROBE_BYTES = 8_192


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class ReadingTool:
    """A tool that only looks. `look` does the work, in a thread, until a deadline on the monotonic clock."""

    spec: ToolSpec
    roots: Roots
    look: Callable[[Roots, Path, Mapping[str, Any], float], Result]

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return prepare(self.spec, args, paths={"path": self.roots.resolve(str(args.get("path", ".")), "read")})

    async def run(self, prepared: Prepared, call: Call) -> Result:
        deadline = time.monotonic() + call.seconds_max
        path = Path(prepared.paths["path"][0])
        try:
            return await asyncio.to_thread(self.look, self.roots, path, prepared.args, deadline)
        except OSError as error:
            return Result(ok=False, value=None, error=f"{self.spec.name} {path}: {error.strerror or error}")

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None


def reading_tools(roots: Roots) -> list[ReadingTool]:
    """The three tools that look at files."""
    return [
        ReadingTool(LIST_FILES, roots, list_files),
        ReadingTool(READ_FILE, roots, read_file),
        ReadingTool(SEARCH_FILES, roots, search_files),
    ]


# -- list_files -------------------------------------------------------------------------------------------------------

LIST_FILES = ToolSpec(
    name="list_files",
    description="List a directory's files with type, size in bytes and time of change (UTC), sorted by path.",
    args_schema=schemas.args(
        path=schemas.path("The directory; default: the workspace"),
        pattern=schemas.text("Only names like this, for example *.log", minLength=1),
        recursive=schemas.flag("Also what is in directories below"),
        limit=schemas.number(f"At most so many; default {LISTED_DEFAULT}", 1, LISTED_MAX),
    ),
    effect="read",
    paths={"path": "read"},
)


def list_files(roots: Roots, path: Path, args: Mapping[str, Any], deadline: float) -> Result:
    """`{"files": [{"path", "type", "size", "changed"}], "left_out": n}`."""
    limit, pattern = args.get("limit", LISTED_DEFAULT), args.get("pattern", "*")
    with roots.directory(path):
        pass  # says plainly when it is no directory
    found: list[JSON] = []
    left_out, scan = 0, _Scan(roots, deadline)
    for entry in scan.entries(path, recursive=args.get("recursive", False)):
        if not fnmatch.fnmatchcase(entry.path.name, pattern):
            continue
        if len(found) == limit:
            left_out += 1
            continue
        found.append(
            {
                "path": roots.shown(entry.path),
                "type": _type(entry.status.st_mode),
                "size": entry.status.st_size,
                "changed": datetime.fromtimestamp(int(entry.status.st_mtime), UTC).isoformat().replace("+00:00", "Z"),
            }
        )
    value: JSON = {"files": found, "left_out": left_out, "cut": scan.cut or None}
    return Result(ok=True, value=value, truncated=bool(left_out or scan.cut))


class _Scan:
    """Walks directories by descriptors, following no link, within a bound of entries and of time; `cut` says which it met."""

    def __init__(self, roots: Roots, deadline: float) -> None:
        self._roots = roots
        self._deadline = deadline
        self._seen = 0
        self.cut = ""

    def entries(self, path: Path, *, recursive: bool) -> Iterator[_Entry]:
        """What lies in the directory, sorted by name; directories before what is in them. Perdure's state is passed over."""
        try:
            with self._roots.directory(path) as descriptor:
                handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
                try:
                    names = sorted(os.listdir(handle))  # noqa: PTH208 - by descriptor, which a Path cannot
                    statuses = list(self._statuses(handle, path, names))
                finally:
                    os.close(handle)
        except (ToolRefused, OSError):
            return  # it went away, or is closed to us
        for entry in statuses:
            if self.cut:
                return
            yield entry
            if recursive and stat.S_ISDIR(entry.status.st_mode):
                yield from self.entries(entry.path, recursive=True)

    def _statuses(self, handle: int, path: Path, names: list[str]) -> Iterator[_Entry]:
        for name in names:
            if path / name in self._roots.hidden:
                continue
            self._seen += 1
            if self._seen > SCANNED_MAX or time.monotonic() > self._deadline:
                self.cut = f"stopped after {SCANNED_MAX} entries" if self._seen > SCANNED_MAX else "stopped for time"
                return
            try:
                yield _Entry(path / name, os.stat(name, dir_fd=handle, follow_symlinks=False))
            except OSError:
                continue


def _type(mode: int) -> str:
    return (
        "file"
        if stat.S_ISREG(mode)
        else "directory"
        if stat.S_ISDIR(mode)
        else "link"
        if stat.S_ISLNK(mode)
        else "other"
    )


# -- read_file --------------------------------------------------------------------------------------------------------

READ_FILE = ToolSpec(
    name="read_file",
    description=(
        "Read a part of a file. Returns its text (binary content as base64), the SHA-256 and size of the whole file, and "
        "next_offset where there is more."
    ),
    args_schema=schemas.args(
        "path",
        path=schemas.path("The file"),
        offset={"type": "integer", "description": "First byte to read; negative: counted from the end. Default 0"},
        limit=schemas.number(f"At most so many bytes; default {READ_DEFAULT}", 1, READ_MAX),
    ),
    effect="read",
    paths={"path": "read"},
)


def read_file(roots: Roots, path: Path, args: Mapping[str, Any], deadline: float) -> Result:
    """`{"path", "text" or "base64", "sha256", "size", "offset", "next_offset", "replaced_bytes"}`."""
    descriptor = roots.open_file(path)
    try:
        size = os.fstat(descriptor).st_size
        offset = args.get("offset", 0)
        offset = max(0, size + offset) if offset < 0 else offset
        data = os.pread(descriptor, args.get("limit", READ_DEFAULT), offset)
        digest = _whole_digest(descriptor, size, deadline)
    finally:
        os.close(descriptor)
    more = offset + len(data) < size
    value: dict[str, JSON] = {"path": roots.shown(path), "sha256": digest, "size": size, "offset": offset}
    if b"\0" in data:
        value["base64"] = base64.b64encode(data).decode()
    else:
        whole = _whole_characters(data) if more else data
        text = whole.decode(errors="replace")
        value["text"] = text
        if (replaced := text.count("\ufffd") - whole.count("\ufffd".encode())) > 0:
            value["replaced_bytes"] = replaced
        data = whole
    value["next_offset"] = offset + len(data) if more else None
    return Result(ok=True, value=value, truncated=more)


def _whole_digest(descriptor: int, size: int, deadline: float) -> str | None:
    """The whole file's hash; None where that would take too long."""
    if size > HASHED_BYTES_MAX:
        return None
    hashed = hashlib.sha256()
    for part in parts(descriptor):
        hashed.update(part)
        if time.monotonic() > deadline:
            return None
    return f"sha256:{hashed.hexdigest()}"


def _whole_characters(data: bytes) -> bytes:
    """`data` without the beginning of a UTF-8 character that its end cuts."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return data
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < length and back < len(data) else data
    return data


# -- search_files -----------------------------------------------------------------------------------------------------

SEARCH_FILES = ToolSpec(
    name="search_files",
    description="Find lines in text files, by literal text or by a regular expression (RE2: linear time, no backreferences).",
    args_schema=schemas.args(
        "text",
        text=schemas.text("What to find", minLength=1, maxLength=1_000),
        path=schemas.path("A file, or a directory to search with all below it; default: the workspace"),
        pattern=schemas.text("Only in files with names like this, for example *.log", minLength=1),
        regex=schemas.flag("The text is a regular expression"),
        ignore_case=schemas.flag("Upper and lower case are the same"),
        limit=schemas.number(f"At most so many lines; default {MATCHES_DEFAULT}", 1, MATCHES_MAX),
    ),
    effect="read",
    paths={"path": "read"},
)


def search_files(roots: Roots, path: Path, args: Mapping[str, Any], deadline: float) -> Result:
    """`{"matches": [{"path", "line", "text"}], "files": n, "bytes": n, "cut": why}`; lines count from 1."""
    pattern = _compiled(args["text"], regex=args.get("regex", False), ignore_case=args.get("ignore_case", False))
    limit, names, scan = args.get("limit", MATCHES_DEFAULT), args.get("pattern", "*"), _Scan(roots, deadline)
    matches: list[JSON] = []
    files, searched, cut = 0, 0, ""
    for file in [path] if path.is_file() else _files(scan, path, names):
        try:
            descriptor = roots.open_file(file)
        except ToolRefused:
            if file == path:
                raise
            continue  # it went away, or is closed to us
        files += 1
        with os.fdopen(descriptor, "rb") as lines:
            searched += os.fstat(lines.fileno()).st_size
            if b"\0" in lines.peek(_BINARY_PROBE_BYTES)[:_BINARY_PROBE_BYTES]:
                continue
            line_number, begins = 1, True
            while line := lines.readline(LINE_BYTES_MAX):
                if begins and pattern.search(line.rstrip(b"\r\n")):
                    matches.append({"path": roots.shown(file), "line": line_number, "text": _shown(line)})
                begins = line.endswith(b"\n")
                line_number += begins
                if len(matches) >= limit or time.monotonic() > deadline:
                    break
        cut = _why_cut(len(matches) >= limit, searched > SEARCHED_BYTES_MAX, time.monotonic() > deadline)
        if cut:
            break
    cut = cut or scan.cut
    value: JSON = {"matches": matches, "files": files, "bytes": searched, "cut": cut or None}
    return Result(ok=True, value=value, truncated=bool(cut))


def _files(scan: _Scan, path: Path, names: str) -> Iterator[Path]:
    for entry in scan.entries(path, recursive=True):
        if stat.S_ISREG(entry.status.st_mode) and fnmatch.fnmatchcase(entry.path.name, names):
            yield entry.path


def _why_cut(matches: bool, size: bool, late: bool) -> str:
    return (
        "stopped at the limit of lines"
        if matches
        else "stopped for size"
        if size
        else "stopped for time"
        if late
        else ""
    )


def _compiled(text: str, *, regex: bool, ignore_case: bool) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.UTF8
    options.literal = not regex
    options.case_sensitive = not ignore_case
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _PATTERN_MEMORY_BYTES
    try:
        return re2.compile(text.encode(), options)
    except re2.error as error:
        cause = (
            error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        )
        raise ToolRefused(
            "search for", repr(text)[:200], f"that is not a regular expression: {cause}", "The syntax is RE2's"
        ) from None


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").rstrip("\r\n")
    return text if len(text) <= LINE_SHOWN_MAX else text[:LINE_SHOWN_MAX] + "…"
