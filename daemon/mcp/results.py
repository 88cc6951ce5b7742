"""From what a server answers to what a planner sees: bounded texts, and other content by size and digest.

What is left out of the planner's view goes whole into the ledger, up to a bound of its own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import mcp_types as types

from perdure.daemon.tools.model import Result
from perdure.state.canonical import CannotEncode, canonical
from perdure.state.events import JSON

ITEMS_SHOWN_MAX = 50
VALUES_MAX = 20_000  # in one piece of JSON; more of them would hold up the loop, and are taken as text


def result_of(answer: types.CallToolResult, *, shown_bytes_max: int, kept_bytes_max: int) -> Result:
    """The result of a call that the server has answered."""
    texts = [_clean(item.text) for item in answer.content if isinstance(item, types.TextContent)]
    others = [item for item in answer.content if not isinstance(item, types.TextContent)]
    text = "\n".join(texts)
    structured = _plain(answer.structured_content)
    whole: dict[str, JSON] = {"text": text}
    if structured is not None:
        whole["structured"] = structured
    if others:
        whole["content"] = [_kept(item) for item in others]
    shown, truncated = _shown(whole, [_described(item) for item in others], shown_bytes_max)
    more = _more_than(whole, kept_bytes_max) if truncated or others else None
    if answer.is_error:
        said = text.strip()[:2_000] or "it gave no reason"
        return Result(
            ok=False, value=shown, error=f"the tool says that it failed: {said}", truncated=truncated, whole=more
        )
    return Result(ok=True, value=shown, truncated=truncated, whole=more)


def text_of(answer: types.CallToolResult) -> str:
    """All text of an answer, for probes."""
    return "\n".join(_clean(item.text) for item in answer.content if isinstance(item, types.TextContent))


def _shown(whole: Mapping[str, JSON], described: list[JSON], bytes_max: int) -> tuple[dict[str, JSON], bool]:
    """What the planner sees of it, and whether that is less than there was."""
    shown: dict[str, JSON] = {"text": whole["text"]}
    if "structured" in whole:
        shown["structured"] = whole["structured"]
        if whole["text"] and _is_same(str(whole["text"]), whole["structured"]):
            del shown["text"]  # servers say structured content twice, for clients that read only text
    if described:
        shown["content"] = described[:ITEMS_SHOWN_MAX]
    cut = len(described) > ITEMS_SHOWN_MAX
    if _size(shown) <= bytes_max:
        return shown, cut
    size = _size(dict(whole))
    text = str(whole["text"]) or json.dumps(whole.get("structured"), ensure_ascii=False)
    shown = {key: value for key, value in shown.items() if key == "content"}
    room = max(0, bytes_max - _size(shown) - 200)
    shown["text"] = _ends(text, room)
    shown["summary"] = f"shortened by Perdure from {size} bytes"
    return (shown if _size(shown) <= bytes_max + 400 else {"summary": f"{size} bytes, too many to show"}), True


def _ends(text: str, bytes_max: int) -> str:
    """The beginning and the end of a text, within `bytes_max` bytes of UTF-8."""
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    head, tail = bytes_max * 2 // 3, bytes_max // 3
    left_out = len(data) - head - tail
    first = data[:head].decode(errors="ignore")
    last = data[-tail:].decode(errors="ignore") if tail else ""
    return f"{first}\n[… {left_out} bytes left out …]\n{last}"


def _more_than(whole: dict[str, JSON], bytes_max: int) -> JSON:
    """What the ledger keeps beside what was shown."""
    if _size(whole) <= bytes_max:
        return whole
    data = canonical(whole)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"text": _ends(str(whole["text"]), bytes_max - 1_000), "bytes": len(data), "digest": digest, "cut": True}


def _described(item: Any) -> JSON:
    """A piece of content that is not text, as the planner sees it: what it is, never its bytes."""
    match item:
        case types.ImageContent() | types.AudioContent():
            return {
                "type": item.type,
                "mime": item.mime_type,
                **_measured(item.data),
                "not_shown": "only text is shown",
            }
        case types.ResourceLink():
            return {"type": "resource_link", "uri": _clean(str(item.uri))[:500], "name": _clean(item.name)[:200]}
        case types.EmbeddedResource():
            resource = item.resource
            uri = _clean(str(resource.uri))[:500]
            if isinstance(resource, types.TextResourceContents):
                return {"type": "resource", "uri": uri, "text": _ends(_clean(resource.text), 4_000)}
            return {"type": "resource", "uri": uri, **_measured(resource.blob), "not_shown": "only text is shown"}
    return {
        "type": _clean(str(getattr(item, "type", "unknown")))[:40],
        "not_shown": "a kind that Perdure does not know",
    }


def _kept(item: Any) -> JSON:
    """The same piece as the ledger keeps it."""
    return _plain(item.model_dump(by_alias=True, mode="json", exclude_none=True))


def _measured(data: str) -> dict[str, JSON]:
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return {"bytes": len(data), "damaged": "it is not base64"}
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _is_same(text: str, structured: JSON) -> bool:
    try:
        return bool(json.loads(text) == structured)
    except (ValueError, RecursionError):
        return False


def _plain(value: Any) -> JSON:
    """JSON that the ledger can hold; NaN, numbers beyond 2^53, half characters and too many values become text."""
    if value is None:
        return None
    if too_many(value):
        return _clean(json.dumps(value, ensure_ascii=False))
    try:
        canonical(value)
    except (CannotEncode, RecursionError):
        return _clean(repr(value)[:100_000])
    return value  # type: ignore[no-any-return]  # what canonical() takes is JSON


def too_many(value: Any) -> bool:
    """Whether a piece of JSON has more than VALUES_MAX values."""
    waiting, seen = [value], 0
    while waiting:
        each = waiting.pop()
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        seen += len(inner)
        if seen > VALUES_MAX:
            return True
        waiting.extend(inner)
    return False


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode() if not text.isascii() else text


def _size(value: JSON) -> int:
    return len(canonical(value))
