"""The hash chain: what each event's hash covers, and how payloads are salted, hashed and packed."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Final

from perdure.state.canonical import CannotEncode, canonical, presentable
from perdure.state.events import JSON
from perdure.state.refusals import LedgerRefused

PAYLOAD_BYTES_MAX: Final = 4 * 1024 * 1024
BODY_BYTES_MAX: Final = 64 * 1024
SALT_BYTES: Final = 16
_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # what its decode() calls, without looking for blanks
COMPRESS_FROM_BYTES: Final = 512  # below, the time that zlib takes to begin is worth more than the bytes


def link(seq: int, at: int, type: str, body: str, payload_hash: str | None, prev: str | None) -> str:
    """The hash of one event: SHA-256 over the canonical JSON of `{algorithm, at, body, payload, prev, seq, type}`.

    `body` is the stored canonical text and goes in as it is, so the keys are put together in RFC 8785 order by hand.
    """
    payload = "null" if payload_hash is None else f'"{payload_hash}"'
    previous = "null" if prev is None else f'"{prev}"'
    text = f'{{"algorithm":"sha256","at":{at},"body":{body},"payload":{payload},"prev":{previous},"seq":{seq},"type":"{type}"}}'
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def payload_bytes(payload: JSON) -> bytes:
    """The canonical bytes of a payload; what has no canonical JSON is made presentable first. Raises LedgerRefused."""
    try:
        data = canonical(payload)
    except CannotEncode:
        data = canonical(presentable(payload))
    if len(data) > PAYLOAD_BYTES_MAX:
        raise LedgerRefused(
            "payload-too-large",
            "a payload",
            f"it has {len(data):,} bytes and at most {PAYLOAD_BYTES_MAX:,} are kept",
            "Bound the tool's output or keep it in a file and record the path",
        )
    return data


def salted_hash(salt: bytes, data: bytes) -> str:
    """The hash that the chain covers. The salt leaves with the payload, so that an erased text cannot be guessed."""
    return "sha256:" + hashlib.sha256(salt + data).hexdigest()


def pack(data: bytes) -> tuple[str, bytes]:
    """How a payload is stored: (`zlib` or `plain`, bytes)."""
    if len(data) >= COMPRESS_FROM_BYTES:
        packed = zlib.compress(data, 1)
        if len(packed) < len(data):
            return "zlib", packed
    return "plain", data


def unpack(encoding: str, data: bytes) -> bytes:
    """The canonical bytes again. Raises ValueError on bytes that are not what `pack` stored; never inflates past the bound."""
    if encoding == "plain":
        return data
    if encoding != "zlib":
        raise ValueError(f"unknown payload encoding {encoding!r}")
    inflater = zlib.decompressobj()
    try:
        result = inflater.decompress(data, PAYLOAD_BYTES_MAX + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(result) > PAYLOAD_BYTES_MAX or not inflater.eof or inflater.unused_data:
        raise ValueError("the compressed payload is not complete")
    return result


def parse_object(text: str) -> dict[str, Any] | None:
    """The object that a body is; None for a text that is none. Bodies as the ledger writes them take a third of `parse`'s time."""
    try:
        value, end = _scan(text, 0)
        if end != len(text):
            value = json.loads(text)
    except (StopIteration, ValueError, TypeError, RecursionError):
        return None
    return value if type(value) is dict else None


def parse(data: bytes | str) -> JSON:
    """JSON as stored."""
    value: JSON = json.loads(data)
    return value
