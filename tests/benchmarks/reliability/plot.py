"""The table as a picture: proven, silent and asked shares of each row at p = 0.85, one bar a row, one panel a length."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

BAR, GAP, LEFT, WIDTH, TOP = 16, 6, 150, 250, 56
COLOURS = {"proven": "#2a7f62", "asked": "#c9a227", "silent": "#b3261e"}
WORDS = {"proven": "proven", "asked": "a person is told", "silent": "wrong, and nobody is told"}


def svg(records: list[dict[str, Any]], p: float = 0.85) -> str:
    """An SVG document; it needs nothing but what is in it."""
    chosen = [one for one in records if one["mode"] == "independent" and one["p"] == p]
    lengths = sorted({one["steps"] for one in chosen})
    rows = list(dict.fromkeys(one["row"] for one in chosen))
    height = TOP + len(rows) * (BAR + GAP) + 30
    width = LEFT + len(lengths) * (WIDTH + 20)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    x = LEFT
    for name, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="18">{WORDS[name]}</text>')
        x += 190
    for index, row in enumerate(rows):
        parts.append(f'<text x="{LEFT - 8}" y="{_y(index) + 12}" text-anchor="end">{escape(row)}</text>')
    for column, steps in enumerate(lengths):
        start = LEFT + column * (WIDTH + 20)
        parts.append(f'<text x="{start}" y="{TOP - 10}" font-weight="bold">{steps} steps, p = {p}</text>')
        for one in (one for one in chosen if one["steps"] == steps):
            parts += _bar(one, start, _y(rows.index(one["row"])))
        for share in (0, 50, 100):
            x = start + WIDTH * share // 100
            parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="middle" fill="#555">{share} %</text>')
    return "\n".join([*parts, "</svg>\n"])


def _y(row: int) -> int:
    return TOP + row * (BAR + GAP)


def _bar(one: dict[str, Any], start: float, y: float) -> list[str]:
    shares = {"proven": one["proven"], "asked": 1 - one["proven"] - one["silent"], "silent": one["silent"]}
    parts, x = [], start
    for name, share in shares.items():
        parts.append(f'<rect x="{x:.2f}" y="{y}" width="{WIDTH * share:.2f}" height="{BAR}" fill="{COLOURS[name]}"/>')
        x += WIDTH * share
    label = f"{one['proven']:.1%}"
    parts.append(f'<text x="{start + 4}" y="{y + 12}" fill="white" stroke="#0006" stroke-width="0.3">{label}</text>')
    return parts
