"""Messages between the daemon and the index's child process: a length, a JSON header, and raw bytes where vectors go."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

HEADER_BYTES_MAX = 64 * 1024 * 1024
BLOB_BYTES_MAX = 256 * 1024 * 1024
_LENGTHS = struct.Struct("<II")


def send(stream: BinaryIO, header: Mapping[str, Any], blob: bytes = b"") -> None:
    """Write one message."""
    text = json.dumps(header, ensure_ascii=True).encode()
    stream.write(_LENGTHS.pack(len(text), len(blob)) + text + blob)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None at the end of the stream, also in the middle of a message."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_bytes, blob_bytes = _LENGTHS.unpack(lengths)
    if header_bytes > HEADER_BYTES_MAX or blob_bytes > BLOB_BYTES_MAX:
        return None
    text, blob = stream.read(header_bytes), stream.read(blob_bytes)
    if len(text) < header_bytes or len(blob) < blob_bytes:
        return None
    header = json.loads(text)
    return (header, blob) if isinstance(header, dict) else None
