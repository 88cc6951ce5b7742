"""Globs, paths and hosts: how the names in a rule are compared with the names in an action. Nothing here backtracks."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import lru_cache

Check = Callable[[str], bool]


def is_glob(pattern: str) -> bool:
    """Whether the pattern may match more than itself."""
    return any(character in pattern for character in "*?[")


@lru_cache(maxsize=4096)
def name_glob(pattern: str) -> Check:
    """`*`, `?` and `[…]` over a name: for tools, programs and sources. Case counts."""
    if not is_glob(pattern):
        return pattern.__eq__
    # fnmatch's regular expressions use atomic groups, so that they are linear; see cpython's Lib/fnmatch.py.
    matcher = re.compile(translate(pattern)).match
    return lambda text: matcher(text) is not None


@lru_cache(maxsize=4096)
def text_glob(pattern: str) -> Check:
    """A glob over text in which `*` and `?` stop at `/`, and `**` as a whole component stands for any number of them."""
    if "/" not in pattern and "**" not in pattern:
        check = name_glob(pattern)
        return lambda text: "/" not in text and check(text)
    parts: list[Check | None] = [None if part == "**" else name_glob(part) for part in pattern.split("/")]
    return lambda text: _components_match(parts, text.split("/"))


def _components_match(pattern: Sequence[Check | None], text: Sequence[str]) -> bool:
    """Greedy matching with one point of return (the last `**`): at most len(pattern) × len(text) comparisons."""
    at, position, star, resume = 0, 0, -1, 0
    while position < len(text):
        check = pattern[at] if at < len(pattern) else None
        if at < len(pattern) and check is None:
            star, resume = at, position
            at += 1
        elif check is not None and check(text[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(check is None for check in pattern[at:])


class RootGlob:
    """A directory that a glob names: `*` and `?` within one component, `**` as a component for any number of them."""

    def __init__(self, pattern: str) -> None:
        self._fits = text_glob(f"{pattern}/**")
        parts = pattern.split("/")
        certain = parts[: parts.index("**")] if "**" in parts else parts
        self._above = [text_glob("/".join(certain[:length])) for length in range(2, len(certain) + 1)]
        # `TOP/**/NAME`, the most frequent kind, is compared component by component with no return
        self._top, self._name = None, None
        if parts.count("**") == 1 and parts[-2:-1] == ["**"] and not is_glob("/".join(parts[:-2])):
            self._top, self._name = "/".join(parts[:-2]) + "/", name_glob(parts[-1])

    def covers(self, path: str) -> bool:
        """Whether the absolute path is such a directory or lies below one."""
        if self._name is None or self._top is None:
            return self._fits(path)
        return path.startswith(self._top) and any(map(self._name, path[len(self._top) :].split("/")))

    def may_lie_below(self, path: str) -> bool:
        """Whether such a directory may lie below the absolute path, as far as the glob says where."""
        return path == "/" or any(above(path) for above in self._above)


def lexical(path: str, workspace: str) -> str:
    """The absolute path that `path` names from the workspace, `.` and `..` taken away without looking at the disk."""
    joined = posixpath.normpath(posixpath.join(workspace, path))
    return (
        joined[1:] if joined.startswith("//") else joined
    )  # POSIX keeps two leading slashes; Linux knows no such place


def is_under(path: str, root: str) -> bool:
    """Whether the absolute `path` is `root` or lies below it, by components: `/a/bc` is not under `/a/b`."""
    return root in {"/", path} or path.startswith(root + "/")


def host_check(pattern: str) -> Check:
    """A host by name, or `*.NAME` for every host below NAME (not NAME itself). Case and a trailing dot do not count."""
    wanted = plain_host(pattern)
    if wanted.startswith("*."):
        suffix = wanted[1:]
        return lambda host: host.endswith(suffix) and len(host) > len(suffix)
    return wanted.__eq__


def plain_host(host: str) -> str:
    """A host name in the one spelling that is compared."""
    return host.lower().removesuffix(".")
