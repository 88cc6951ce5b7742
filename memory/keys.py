"""Keys that lead to a record: its sentences, each with the label before them. A long record's one vector says little of what
stands in it; a sentence's says it (found all evidence in 1 to 2 % more questions than whole records alone)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from perdure.memory.embedding import DIMENSIONS, Vectors

KEYS_MAX = 8  # of one record; more sentences than that are joined
LETTERS_MIN = 12  # what is shorter says nothing by itself
SCALE = 0.4 / 127  # of one step of a stored component: those of 384 dimensions rarely pass 0.3; the rest is clipped

_LABEL = re.compile(r"[^:.!?]{1,40}: ")  # who speaks, which call
_ENDS = re.compile(r"(?<=[.!?;])\s+(?=[\w\"'(\[])|\s*⏎\s*|\s+(?=\[)")


def keys(text: str) -> list[str]:
    """The sentences of a text of more than one, each after the text's label."""
    label = found[0] if (found := _LABEL.match(text)) else ""
    parts = [part for part in _ENDS.split(text[len(label) :]) if len(part) >= LETTERS_MIN]
    if len(parts) < 2:
        return []
    at_once = -(-len(parts) // KEYS_MAX)
    return [label + " ".join(parts[start : start + at_once]) for start in range(0, len(parts), at_once)]


def embedded(texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors | None]) -> list[bytes] | None:
    """Of each text, as memory.db keeps it: its vector as floats, then those of its keys, a byte a component."""
    keys_of = [keys(text) for text in texts]
    vectors = embed([each for text, own in zip(texts, keys_of, strict=True) for each in (text, *own)])
    if vectors is None:
        return None
    kept: list[bytes] = []
    place = 0
    for own in keys_of:
        whole, rest = vectors[place], vectors[place + 1 : place + 1 + len(own)]
        kept.append(whole.astype("<f4").tobytes() + reduced(rest).tobytes())
        place += 1 + len(own)
    return kept


def reduced(vectors: Vectors) -> NDArray[np.int8]:
    """Unit vectors in a byte a component: exact to about 0.001 of a cosine."""
    steps: NDArray[np.int8] = np.clip(np.rint(vectors / SCALE), -127, 127).astype(np.int8)
    return steps


def whole(blob: bytes) -> Vectors:
    """The vector of the whole text."""
    return np.frombuffer(blob, dtype="<f4", count=DIMENSIONS)


def similarities(blobs: Sequence[bytes], vector: Vectors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each record the cosine of its whole text with `vector`, and the best of that and its keys'."""
    if not blobs:
        return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32)
    size = 4 * DIMENSIONS
    exact = np.frombuffer(b"".join(blob[:size] for blob in blobs), dtype="<f4").reshape(-1, DIMENSIONS) @ vector
    rest = np.frombuffer(b"".join(blob[size:] for blob in blobs), dtype=np.int8).reshape(-1, DIMENSIONS)
    best: NDArray[np.float32] = exact.copy()
    owners = np.repeat(np.arange(len(blobs)), [(len(blob) - size) // DIMENSIONS for blob in blobs])
    np.maximum.at(best, owners, rest.astype(np.float32) @ (vector * np.float32(SCALE)))
    return exact, best
