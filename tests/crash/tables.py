"""Tables for people: plain text, headings of several words one above the other, numbers to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str | int]], *, left: int = 1, total: bool = False) -> str:
    """The table as text. The first `left` columns hold words, the others figures; `total`: the last row is the sum."""
    words = [heading.split(" ") if column >= left else [heading] for column, heading in enumerate(headings)]
    height = max(map(len, words))
    head = [[""] * (height - len(one)) + one for one in words]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    widths = [
        max(len(text) for text in (*head[column], *(row[column] for row in cells))) for column in range(len(headings))
    ]

    def line(row: Sequence[str]) -> str:
        parts = (
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(parts).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [*(line([one[level] for one in head]) for level in range(height)), rule, *map(line, cells)]
    if total:
        lines.insert(-1, rule)
    return "\n".join(lines)
