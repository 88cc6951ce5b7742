"""Single values out of a YAML tree: each of its type, or a complaint with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from perdure.policies.documents import Complaints, Listing, Node, Place, Scalar, Table, nearest, words_for

_T = TypeVar("_T")


class NodeReader:
    """Reads nodes of one file; whatever is wrong is added to its complaints, and something harmless is returned."""

    def __init__(self, complaints: Complaints) -> None:
        self.complaints = complaints
        self.file = complaints.file

    def wrong(self, node: Node | None, key: Place, expected: str) -> None:
        empty = node is None or (isinstance(node, Scalar) and node.value is None and not node.text)
        place = key if node is None or empty else node.place
        self.complaints.add(place, words_for(node) if node is not None else "nothing", expected)

    def table(
        self, node: Node | None, expected: str, known: Sequence[str] | None = None, key: Place | None = None
    ) -> Table | None:
        if not isinstance(node, Table):
            self.wrong(node, key or (node.place if node else Place(1, 1)), expected)
            return None
        if known is not None:
            for name, place in node.keys.items():
                if name not in known:
                    self.complaints.add(
                        place, f"the unknown key {name!r}", f"one of {', '.join(known)}{nearest(name, known)}"
                    )
        return node

    def optional_table(self, table: Table, key: str, expected: str, known: Sequence[str] | None = None) -> Table | None:
        return self.table(table.entries.get(key), expected, known, table.keys[key]) if key in table.keys else None

    def each(self, table: Table, key: str, read: Callable[[Node], _T | None]) -> list[_T]:
        node = table.entries.get(key)
        if key not in table.keys:
            return []
        if not isinstance(node, Listing):
            self.wrong(node, table.keys[key], f"a list of {key}")
            return []
        return [item for entry in node.items if (item := read(entry)) is not None]

    def text(self, table: Table, key: str, *, required: str = "") -> str | None:
        node = table.entries.get(key)
        if key not in table.keys:
            if required:
                self.complaints.add(table.place, f"no `{key}`", required)
            return None
        if not isinstance(node, Scalar) or node.value is None or not node.text.strip():
            self.wrong(node, table.keys[key], required or "text")
            return None
        if not isinstance(node.value, str):
            self.wrong(node, table.keys[key], "text (in quotes)")
            return None
        return node.value

    def names(self, table: Table, key: str, *, required: str = "") -> tuple[str, ...]:
        """A name or a list of names."""
        node = table.entries.get(key)
        if key not in table.keys:
            if required:
                self.complaints.add(table.place, f"no `{key}`", required)
            return ()
        items = node.items if isinstance(node, Listing) else (node,) if isinstance(node, Scalar) else ()
        if not items:
            self.wrong(node, table.keys[key], "a name or a list of names")
            return ()
        found: list[str] = []
        for item in items:
            if isinstance(item, Scalar) and isinstance(item.value, str) and item.value.strip():
                found.append(item.value)
            else:
                self.wrong(item, table.keys[key], "text (in quotes)")
        return tuple(found)

    def choice(self, table: Table, key: str, known: Sequence[str], *, required: bool = False) -> str | None:
        word = self.text(table, key, required=or_words(known) if required else "")
        if word is None or word in known:
            return word
        self.wrong(table.entries[key], table.keys[key], f"{or_words(known)}{nearest(word, known)}")
        return None

    def boolean(self, table: Table, key: str) -> bool:
        node = table.entries.get(key)
        if key not in table.keys:
            return False
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        self.wrong(node, table.keys[key], "true or false")
        return False

    def number(self, table: Table, key: str, least: int, most: int, *, required: bool = False) -> int:
        node = table.entries.get(key)
        if key not in table.keys:
            if required:
                self.complaints.add(table.place, f"no `{key}`", f"a whole number from {least} to {most:,}")
            return 0
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.wrong(node, table.keys[key], f"a whole number from {least} to {most:,}")
            return 0
        return value


def or_words(words: Sequence[str]) -> str:
    """The words as a person lists them: `auto, escalate or deny`."""
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
